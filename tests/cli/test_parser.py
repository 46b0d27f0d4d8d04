"""Mistakes in a few lines, and help without marks of reStructuredText."""

import re
from pathlib import Path

import pytest
import yaml

from recall_lightning.cli.main import main
from recall_lightning.methods.table import METHODS

ROOT = Path(__file__).parents[2]
RECIPE = ["-c", str(ROOT / "recipes" / "digits_rotated.yaml")]
MARKS = re.compile(r"``|:[a-z]+:`|`_|\.\. \w+::|<class ")


def shown(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, args)))
    return stopped.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--recal.every", "1"], r"unrecognized arguments: --recal.every 1; did you mean --recall"),
        (["--recall.plasticity", "-1"], r"plasticity=-1.0 must be 'auto'"),
        (["--recall.plasticity", "many"], r"--recall.plasticity 'many' must be"),
        (["--recall.every", "never"], r"--recall.every 'never' must be an int or a float"),
        (["--recall.rule", "unifrom"], r"rule='unifrom' is unknown: use one of"),
        (["--recall.rule", "Uniform"], r"Uniform needs 'weight'"),
        (["--recall.rule", "Uniform", "--recall.rule.wieght", "1"], r"did you mean weight\?"),
        (["--recall.rule", "Uniform", "--recall.rule.weight", "x"], r"weight 'x' must be a float"),
        (["--recall.moments.widht", "3"], r"'widht' of MomentSettings; did you mean width\?"),
        (["--recall.snapshots", "x"], r"--recall.snapshots 'x' must be"),
        (["--method", "magic"], r"--method 'magic' must be one of 'finetune'"),
        (["--data", "NoSuch"], r"--data 'NoSuch' must be a class, given by its import path"),
        (["--data.num_taskss", "3"], r"'num_taskss' of DigitsStream; did you mean num_tasks\?"),
        (["--data.num_tasks", "three"], r"--data.num_tasks 'three' must be an int"),
        (["--trainer.callbacks+=NoSuch"], r"--trainer.callbacks 'NoSuch' must be a class"),
        (["--trainer.max_epochs", "soon"], r"--trainer.max_epochs 'soon' must be an int"),
        (["--trainer.accelerator", "abacus"], r"trainer: .*accelerator='abacus'.*Available"),
        (["--ckpt_path", "none.ckpt"], r"none.ckpt"),
        (["stray"], r"unrecognized arguments: stray"),
        (["-c", "none.yaml"], r"--config: File does not exist: .*none.yaml"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("word", ["fit", "validate"])
def test_a_mistake_is_told_in_a_few_lines(word, given, said, capsys, monkeypatch):
    if word == "validate" and said.startswith(("plasticity", "rule=")):
        pytest.skip("of what is built, the same")
    monkeypatch.chdir(ROOT)
    code, out = shown(capsys, word, *RECIPE, *given, "--trainer.logger=false")
    lines = [line for line in out.err.strip().splitlines() if not line.startswith("Seed set")]
    assert code == 2
    assert len(lines) <= 5
    assert re.search(f"^recall-lightning: error: .*{said}", lines[0]), out.err
    assert len(lines[0]) < 400
    assert out.out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("trainer: {a: b\n  c: [", r"r.yaml, line 2 is no YAML "),
        ("- 1\n- 2", r"r.yaml holds no settings"),
        ("# nothing yet", r"r.yaml holds no settings"),
        ("trainer: {max_epohs: 1}", r"no option 'trainer.max_epohs'; did you mean trainer.max_ep"),
        (
            "recal: {plasticity: 1}",
            r"no option 'recal.plasticity'; did you mean recall.plasticity\?",
        ),
        ("data: {class_path: DigitsStream, init_args: {num: x}}", r"'num' of DigitsStream"),
        ("data: {class_path: NoSuch}", r"--data 'NoSuch' must be a class"),
        ("recall: {rule: {class_path: Uniform, init_args: {wieght: 1}}}", r"did you mean weight"),
    ],
)
def test_so_is_one_in_a_recipe(content, said, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(content)
    code, out = shown(capsys, "fit", *RECIPE, "-c", tmp_path / "r.yaml")
    assert code == 2
    assert re.search(f"^recall-lightning: error: .*{said}", out.err), out.err
    assert len(out.err.strip().splitlines()) <= 2


def test_without_a_recipe_it_says_what_to_name(capsys):
    assert "name a recipe" in shown(capsys, "fit")[1].err


@pytest.mark.parametrize("word", ["fit", "validate"])
def test_the_help_is_plain_and_has_what_people_turn_first_in_front(word, capsys):
    code, out = shown(capsys, word, "--help")
    assert code == 0
    assert not MARKS.search(out.out), MARKS.search(out.out)
    assert max(map(len, out.out.splitlines()[1:])) < 120
    assert len(out.out.splitlines()) < 480
    options = ["--method", "--recall.plasticity", "--forgetting.monitor", "--data ", "--model "]
    places = [out.out.index(f"  {each}") for each in (*options, "--trainer.max_epochs")]
    assert places == sorted(places)
    for method in METHODS.values():
        assert method.configured is None or f"--{method.name}.*: {method.summary}" in out.out


@pytest.mark.parametrize(
    ("option", "name", "argument"),
    [
        ("recall.rule", "Uniform", "--recall.rule.weight"),
        ("trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_top_k"),
        ("data", "DigitsStream", "--data.num_tasks"),
        ("model", "CausalLMModule", "--model.lora"),
    ],
)
def test_so_is_that_of_a_class(option, name, argument, capsys):
    code, out = shown(capsys, "fit", f"--{option}.help", name)
    assert code == 0
    assert not MARKS.search(out.out), MARKS.search(out.out)
    assert f"  {argument} " in out.out


@pytest.mark.parametrize("word", ["compare", "merge", "export"])
def test_so_is_that_of_the_other_commands(word, capsys):
    code, out = shown(capsys, word, "--help")
    assert code == 0
    assert not MARKS.search(out.out)


@pytest.mark.parametrize("word", ["compare", "merge", "export"])
def test_a_wrong_option_of_the_other_commands_is_one_line(word, capsys):
    code, out = shown(
        capsys, word, "a", "--ouut", "b", *(["--out", "c"] if word != "merge" else [])
    )
    (line,) = out.err.strip().splitlines()
    assert code == 2
    assert line.startswith(f"recall-lightning {word}: error: unrecognized arguments: ")
    assert "--ouut" in line


def test_a_printed_config_can_be_read(capsys):
    code, out = shown(capsys, "fit", *RECIPE, "--print_config")
    assert code == 0
    assert yaml.safe_load(out.out)["method"] == "recall"
