"""Whatever a run reads is in its state; nothing else is."""

import sys

import pytest

from recall_lightning.compare import state
from recall_lightning.compare.state import state_of

RECIPE = """
trainer: {callbacks: [{class_path: own_callbacks.Mine}], default_root_dir: texts}
data:
  class_path: own_package.data.Own
  init_args:
    tokenizer: &model model
    cache: written
    tasks:
      - {name: written, train: a.txt}
      - {name: b, train: texts, validation: missing.txt}
    more: more.yaml
model: {class_path: CausalLMModule, init_args: {model: *model, lr: 1.0e-3}}
"""
FILES = {
    "r.yaml": RECIPE,
    "defaults.yaml": "trainer: {accelerator: cpu}",
    "more.yaml": "general: {train: general.jsonl}",
    "a.txt": "a",
    "general.jsonl": "{}",
    "texts/1.txt": "1",
    "texts/deep/2.txt": "2",
    "model/config.json": "{}",
    "own_callbacks.py": "import own_helpers\nimport torch",
    "own_helpers.py": "def f():\n    from own_deeper import g",
    "own_deeper.py": "g = 1",
    "own_package/__init__.py": "",
    "own_package/data.py": "from . import parts",
    "own_package/parts.py": "x = 1",
    "argument.ckpt": "weights",
}
INPUTS = [*FILES, "texts/3.txt"]
NO_INPUTS = ["written/x", "unnamed.txt", "unnamed.py", "texts/.hidden", "texts/.git/x", "out/x"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def taken(folder):
    return state_of(
        ["r.yaml"], ["--ckpt_path=argument.ckpt", "--x", "{y: [a.txt]}"], folder / "out"
    )


@pytest.mark.parametrize("name", INPUTS)
def test_a_change_of_anything_that_is_read_is_another_state(name, folder):
    before = taken(folder)
    assert taken(folder) == before
    with (folder / name).open("a") as file:
        file.write(" ")
    after = taken(folder)
    assert after.parts != before.parts
    (changed,) = after.changed_since(before.parts)
    assert changed.split()[-1].split("/")[0] == name.split("/")[0].removesuffix(".py") or (
        changed == name
    )
    assert (before.touched() is None) == (name == "texts/3.txt")  # which is new


@pytest.mark.parametrize("name", NO_INPUTS)
def test_a_change_of_anything_else_is_not(name, folder):
    before = taken(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert taken(folder) == before
    assert before.touched() is None


def test_a_file_that_is_written_anew_with_the_same_content_is_the_same(folder):
    before = taken(folder)
    (folder / "a.txt").write_text("a")
    assert taken(folder) == before
    assert before.touched() is None


def test_a_file_that_is_gone_is_another_state(folder):
    before = taken(folder)
    (folder / "texts/1.txt").unlink()
    assert taken(folder).changed_since(before.parts) == ["texts"]
    assert before.touched() == "texts/1.txt"


def test_versions_and_our_own_source_belong_to_it(folder, monkeypatch):
    before = taken(folder)
    assert {"recall_lightning", "python", "torch", "lightning"} <= set(before.parts)
    monkeypatch.setattr(state.metadata, "version", lambda name: "another")
    state._version.cache_clear()
    assert "torch" in taken(folder).changed_since(before.parts)
    state._version.cache_clear()
    monkeypatch.setattr(state, "_own_source", lambda: {"recall_lightning": "another"})
    assert "recall_lightning" in taken(folder).changed_since(before.parts)


def test_a_package_that_a_recipe_names_is_there_with_its_version(folder):
    (folder / "r.yaml").write_text("optimizer: {class_path: sklearn.linear_model.Ridge}")
    import sklearn

    assert taken(folder).parts["sklearn"] == sklearn.__version__


@pytest.mark.parametrize("content", ["a: [", "\x00", "- 1", "a: " + "x" * 9999])
def test_a_recipe_that_cannot_be_read_has_a_state_too(content, folder):
    (folder / "r.yaml").write_text(content)
    assert "r.yaml" in taken(folder).parts
