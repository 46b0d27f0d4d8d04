"""What the README and the site's pages show works: code, commands, recipes, links."""

import doctest
import importlib.util
import re

import pytest
import torch

from recall_lightning.cli.main import main
from recall_lightning.cli.merge import merge_parser
from recall_lightning.cli.recipes import recipes_parser
from recall_lightning.cli.report import report_parser
from recall_lightning.cli.retune import retune_parser
from recall_lightning.compare import command as compare
from recall_lightning.compare.check import check_commands
from recall_lightning.doctor.command import doctor_parser
from recall_lightning.export.command import export_parser
from recall_lightning.merging.rules.base import RULES
from tests.support.documents import BLOCKS, ROOT, blocks, by_page, commands, pages
from tests.support.training import Plain, loader

LANGUAGES = {"python", "pycon", "bash", "yaml", "toml", "text"}
PARSERS = {
    "merge": merge_parser,
    "report": report_parser,
    "retune": retune_parser,
    "export": export_parser,
    "recipes": recipes_parser,
    "doctor": doctor_parser,
}
COMMANDS = [
    pytest.param(block, words, id=f"{block.page}:{block.line} {' '.join(words)[:60]}")
    for block in BLOCKS
    if block.language == "bash"
    for words in commands(block)
]
OWN = [each for each in COMMANDS if each.values[1][0] == "recall-lightning"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader stands: beside the recipes, with a folder for runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    for name in ("recipes", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(ROOT / "recipes" / "five_tasks_tiny" / "model")
    return tmp_path


@pytest.fixture
def names():
    """What a reader has: a model, and a loader a task for training and for validation."""
    torch.manual_seed(0)
    return {
        "__name__": "__main__",
        "model": Plain(),
        "train_loaders": [loader(task) for task in range(2)],
        "val_loaders": [loader(task, 16, shuffle=False) for task in range(2)],
    }


def write_files(page, folder):
    """Write the YAML of a page whose first line is a comment with a file's name."""
    for block in by_page("yaml").get(page, []):
        if named := re.match(r"# ([\w/]+\.yaml)\n", block.text):
            (folder / named[1]).write_text(block.text)


def test_every_block_names_a_language_that_is_tested_here():
    for block in BLOCKS:
        known = block.language in LANGUAGES or block.language.startswith("{")
        assert known, f"{block.page}:{block.line} is {block.language!r}: use {sorted(LANGUAGES)}"


@pytest.fixture
def own_rules():
    """Rules that a page defines are known by their names for as long as it runs."""
    known = dict(RULES)
    yield
    RULES.clear()
    RULES.update(known)


@pytest.mark.parametrize("page", by_page("python", "pycon"))
@pytest.mark.usefixtures("own_rules")
def test_a_pages_python_runs_from_top_to_bottom(page, folder, names):
    write_files(page, folder)
    for block in by_page("python", "pycon")[page]:
        if block.language == "pycon":
            session = doctest.DocTestParser().get_doctest(block.text, names, page, page, block.line)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
                session, clear_globs=False
            )
            assert result.attempted
            assert not result.failed
            names |= session.globs
        else:
            code = "\n" * block.line + block.text  # so that an error names the page's line
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(("block", "words"), OWN)
def test_a_pages_commands_are_understood(block, words, folder, capsys):
    write_files(block.page, folder)
    word, arguments = words[1], words[2:]
    if "--help" in arguments or word == "--help":
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert ended.value.code == 0
    elif word in PARSERS:
        PARSERS[word]().parse_args(arguments)
    elif word == "compare":
        options, extra = compare._parse(arguments)
        check_commands(compare._comparison(options, extra).runs())
    else:
        printed(word, *arguments)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(each, id=f"{each.page}:{each.line}")
        for each in BLOCKS
        if each.language == "yaml"
    ],
)
def test_a_pages_yaml_is_understood(block, folder, capsys):
    (folder / "shown.yaml").write_text(block.text)
    if "models:" in block.text:
        from recall_lightning.cli.merge import _given, _settings

        models = folder / "MODEL", folder / "BASE"
        for model in models:
            model.symlink_to(ROOT / "recipes" / "five_tasks_tiny" / "model")
        _settings(_given(["--config", "shown.yaml"]))
    else:
        base = [] if "data:" in block.text else ["-c", "recipes/digits_permuted.yaml"]
        printed("fit", *base, "-c", "shown.yaml")


def printed(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"])
    assert ended.value.code == 0


def test_what_make_and_python_are_asked_for_is_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block, words in (each.values for each in COMMANDS):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), f"{block.page}:{block.line}"
        if words[0] == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), f"{block.page}:{block.line}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_links_to_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target and not target.startswith("{"):
            assert (page.parent / target).exists(), target


def test_the_readme_is_one_page():
    assert (ROOT / "README.md").stat().st_size <= 8_192


def test_blocks_are_found_within_directives_and_lists():
    text = ":::{note}\n```python\na\n```\n:::\n\n1. x\n   ```bash\n   b\n   ```\n"
    assert [(b.line, b.language, b.text) for b in blocks(text)] == [
        (2, "python", "a\n"),
        (8, "bash", "b\n"),
    ]
