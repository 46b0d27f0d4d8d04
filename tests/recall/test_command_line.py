"""RecallCallback's arguments as YAML and the command line give them; nothing is trained."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from recall_lightning.cli.main import main
from recall_lightning.merging.rules import KfacImportance, KfacSubspace, MergeRule, Product, Rbf
from recall_lightning.recall.callback import RecallCallback
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
    SnapshotSettings,
)
from tests.support.callbacks import statistic

SETTINGS = {
    "samples": SampleSettings,
    "importance": ImportanceSettings,
    "moments": MomentSettings,
    "prior": PriorSettings,
    "snapshots": SnapshotSettings,
}
RECIPES = Path(__file__).parents[2] / "recipes"


class Half(MergeRule):
    """A rule of one's own, in one's own file."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def coefficients(self, inputs):
        return {block.name: self.share for block in inputs.blocks}


@pytest.fixture(scope="module")
def parser():
    """What LightningCLI makes of the arguments, without the rest of the command."""
    parser = LightningArgumentParser()
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(RecallCallback, "recall")
    return parser


@pytest.fixture
def built(parser):
    """Build the callback from options, or from YAML and options on top of it."""

    def build(*options, recipe=None):
        given = ["--config", recipe] if recipe else []
        return parser.instantiate_classes(parser.parse_args([*given, *options])).recall

    return build


@pytest.fixture
def recipe(tmp_path):
    """Write ``recall``'s arguments as a file of YAML."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"recall": yaml.safe_load(text)}))
        return str(path)

    return write


def shown(rule):
    return type(rule).__name__, vars(rule)


@pytest.mark.parametrize("name", ["rbf", "Rbf", "recall_lightning.merging.rules.Rbf"])
@pytest.mark.parametrize("argument", ["rule", "end_rule"])
def test_a_rule_is_named_shortly_or_by_its_class(argument, name, built, recipe):
    from_option = built(f"--recall.{argument}", name)
    from_recipe = built(recipe=recipe(f"{argument}: {name}"))
    for callback in (from_option, from_recipe):
        assert shown(getattr(callback, argument)) == shown(Rbf())


def test_products_have_names_alone(built):
    rule = built("--recall.rule", "rbf*kfac_importance").rule
    assert isinstance(rule, Product)
    assert [type(factor) for factor in rule.rules] == [Rbf, KfacImportance]


def test_a_rule_of_ones_own_is_given_by_its_path(built):
    path = f"{__name__}.Half"
    rule = built("--recall.rule", path, "--recall.rule.share", "0.25").rule
    assert shown(rule) == shown(Half(0.25))


def test_a_rules_numbers_follow_its_class(built):
    callback = built("--recall.rule", "Rbf", "--recall.rule.temperature", "0.3")
    assert shown(callback.rule) == shown(Rbf(temperature=0.3))
    assert callback.end_rule is callback.rule
    callback = built("--recall.end_rule", "KfacSubspace", "--recall.end_rule.new_inputs", "4")
    assert shown(callback.rule) == shown(KfacImportance())
    assert shown(callback.end_rule) == shown(KfacSubspace(new_inputs=4.0))


RULES = """
rule:
  class_path: KfacImportance
  init_args:
    scale: 0.02
end_rule: {class_path: KfacSubspace, init_args: {new_inputs: 8}}
"""


def test_a_rules_numbers_stand_in_a_recipe_and_options_change_them_one_by_one(built, recipe):
    path = recipe(RULES)
    callback = built(recipe=path)
    assert shown(callback.rule) == shown(KfacImportance(0.02))
    assert shown(callback.end_rule) == shown(KfacSubspace(8.0))
    callback = built("--recall.end_rule.new_inputs", "2", recipe=path)
    assert shown(callback.rule) == shown(KfacImportance(0.02))
    assert shown(callback.end_rule) == shown(KfacSubspace(2.0))


def test_an_option_puts_another_rule_in_a_recipes_place(built, recipe):
    path = recipe(RULES)
    callback = built("--recall.rule", "rbf", "--recall.end_rule", "never", recipe=path)
    assert shown(callback.rule) == shown(Rbf())
    assert callback.end_rule is None
    ended = built("--recall.end_rule", "auto", recipe=path).end_rule
    assert shown(ended) == shown(KfacSubspace())
    ended = built("--recall.end_rule", "null", recipe=path)
    assert ended.end_rule is ended.rule


@pytest.mark.parametrize(
    "strength", [0.5, [0.5, 0.2], {"*attention*": 1.0, "*": [0.5, 0.1]}], ids=["one", "depth", "by"]
)
def test_a_strength_differs_by_depth_or_by_name(strength, built, recipe):
    options = ["--recall.rule", "Rbf", "--recall.rule.strength", yaml.safe_dump(strength)]
    assert built(*options).rule.strength == strength
    rule = {"class_path": "Rbf", "init_args": {"strength": strength}}
    assert built(recipe=recipe(yaml.safe_dump({"rule": rule}))).rule.strength == strength


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("samples.typical", "8", 8),
        ("samples.pool", "64", 64),
        ("samples.sampling", "random", "random"),
        ("importance.source", "gradients", "gradients"),
        ("importance.steps", "7", 7),
        ("moments.batches", "4", 4),
        ("moments.width", "64", 64),
        ("moments.rank", "8", 8),
        ("moments.source", "generated", "generated"),
        ("prior.sequences", "8", 8),
        ("prior.starts", "[chat, bos]", ("chat", "bos")),
        ("snapshots.number", "3", 3),
        ("snapshots.number", "all", "all"),
        ("snapshots.device", "cpu", "cpu"),
        ("snapshots.to", "file", "file"),
        ("snapshots.on_missing", "restart_task", "restart_task"),
        ("snapshots.on_failed_write", "error", "error"),
    ],
)
def test_settings_are_given_one_by_one_and_the_rest_keeps_its_defaults(
    option, value, expected, parser, recipe
):
    group, name = option.split(".")
    as_given = vars(SETTINGS[group](**{name: expected}))
    for options in (
        [f"--recall.{option}", value],
        ["--config", recipe(f"{group}: {{{name}: {value}}}")],
    ):
        assert vars(parser.parse_args(options).recall[group]) == as_given


def test_texts_of_what_the_model_knew_stand_in_a_recipe(built, recipe):
    callback = built(recipe=recipe("prior: [a text, another]"))
    assert statistic(callback, "moments").prior._given == ["a text", "another"]
    assert callback.state_dict()["settings"] == {"prior": "2 texts"}


def test_settings_reach_the_callback_and_options_add_to_a_recipes(built, recipe):
    path = recipe("{rule: rbf, samples: {typical: 8}}")
    kept = built("--recall.samples.pool", "16", "--recall.plasticity", "0.8", recipe=path)
    assert kept.plasticity == 0.8
    assert kept.state_dict()["settings"] == {
        "plasticity": 0.8,
        "rule": "rbf",
        "samples": {"typical": 8, "pool": 16},
    }


@pytest.mark.parametrize(
    "options",
    [
        ["--recall.samples.typicl", "8"],
        ["--recall.rule", "Rbf", "--recall.rule.temprature", "0.3"],
        ["--recall.rule", "Uniform"],  # it has no weight
        ["--recall.moments.source", "tasks"],
    ],
)
def test_what_no_setting_or_rule_has_is_refused(options, parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(options)
    assert options[-2].removeprefix("--").rpartition(".")[0] in capsys.readouterr().err


def test_the_whole_command_reads_them_and_prints_what_it_reads_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recall-lightning"])
    rules = ["--recall.rule", "KfacImportance", "--recall.rule.scale", "0.05"]
    rules += ["--recall.end_rule", "KfacSubspace", "--recall.end_rule.new_inputs", "4"]
    options = [*rules, "--recall.moments.batches", "8"]
    recipe = RECIPES / "five_tasks_tiny.yaml"
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", str(recipe), *options, "--recall.plasticity", "0.8", "--print_config"])
    printed = tmp_path / "config.yaml"
    printed.write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", str(printed), "--print_config"])
    again = yaml.safe_load(capsys.readouterr().out)
    assert again == yaml.safe_load(printed.read_text())
    recall = again["recall"]
    assert recall["plasticity"] == 0.8
    assert recall["rule"]["class_path"].endswith(".KfacImportance")
    assert recall["rule"]["init_args"]["scale"] == 0.05
    assert recall["end_rule"]["init_args"]["new_inputs"] == 4.0
    assert recall["moments"]["batches"] == 8
