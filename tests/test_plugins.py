"""Rules, methods and streams of other packages, by name, from their entry points."""

import json
import sys
import warnings

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback, plugins
from recall_lightning.data.plugins import STREAM_PLUGINS
from recall_lightning.merging.rules import Rbf, rule_by_name
from recall_lightning.merging.rules.base import RULES
from recall_lightning.merging.rules.named import RULE_PLUGINS
from recall_lightning.merging.rules.stored import rule_as_plain, rule_from_plain
from recall_lightning.methods.table import METHOD_PLUGINS
from recall_lightning.plugins import PluginError, Plugins, plugin_module
from tests.support.packages import install, install_gentle
from tests.support.processes import ROOT, run_python

RECIPE = """
trainer: {accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false}
data: {class_path: CornersStream, init_args: {samples: 24}}
model:
  class_path: ClassifierModule
  init_args: {num_classes: 4, model: {class_path: MLP, init_args: {sizes: [2, 4, 4]}}}
"""
CLASHES = {
    "rules": {"rbf": "recall_gentle:Gentle"},
    "methods": {"ewc": "recall_gentle:GENTLE_FIT", "trainer": "recall_gentle:GENTLE_FIT"},
    "streams": {"DigitsStream": "recall_gentle:CornersStream"},
}
BROKEN = {
    "rules": {"lost": "no_such_module:Rule", "nameless": "json:dumps"},
    "methods": {"lost_fit": "no_such_module:METHOD"},
    "streams": {"LostStream": "no_such_module:LostStream"},
}


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A folder of the path to install packages in; what they bring is forgotten after the test."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    plugins._found.cache_clear()
    for each in (RULE_PLUGINS, METHOD_PLUGINS, STREAM_PLUGINS):
        monkeypatch.setattr(each, "_loaded", {})
    rules = dict(RULES)
    yield folder
    plugins._found.cache_clear()
    RULES.clear()
    RULES.update(rules)
    sys.modules.pop("recall_gentle", None)


@pytest.fixture
def run(tmp_path):
    """Run a command where the example, and maybe other packages, are installed."""
    folder = tmp_path / "installed"
    folder.mkdir()
    install_gentle(folder)
    (tmp_path / "mine.yaml").write_text(RECIPE)

    def command(*words, others=None, fails=False):
        if others is not None:
            install(folder, "recall-others", others)
        path = f"{ROOT}:{folder}"
        options = {"folder": tmp_path, "fails": fails, "PYTHONPATH": path}
        return run_python("-m", "recall_lightning", *words, **options)

    return command


def rules_of(callback):
    return [type(rule).__name__ for rule in (callback.rule, callback.end_rule)]


def test_a_packages_rule_is_known_by_its_name_wherever_a_built_in_one_is(target):
    install_gentle(target)
    assert rules_of(RecallCallback(rule="gentle")) == ["Gentle", "Gentle"]
    assert rules_of(RecallCallback(end_rule="gentle")) == ["KfacImportance", "Gentle"]
    assert [rule.name for rule in rule_by_name("rbf*gentle").rules] == ["rbf", "gentle"]


def test_a_checkpoints_rule_is_found_again_without_its_module_being_imported(target):
    install_gentle(target)
    stored = rule_as_plain(rule_by_name("gentle"))
    RULES.pop("gentle")  # of a process that has not asked for it
    RULE_PLUGINS._loaded.clear()
    sys.modules.pop("recall_gentle")
    assert rule_from_plain(stored).share == 0.25


def test_nothing_is_imported_to_know_the_names(target):
    install_gentle(target)
    assert RULE_PLUGINS.packages == {"gentle": "recall-gentle"}
    assert METHOD_PLUGINS.packages == {"gentle_fit": "recall-gentle"}
    assert plugin_module("CornersStream") == "recall_gentle"
    rule_by_name("rbf")
    assert "recall_gentle" not in sys.modules


def test_an_unknown_rule_is_told_with_the_names_of_other_packages(target):
    install_gentle(target)
    with pytest.raises(ValueError, match=r"use one of .*gentle"):
        rule_by_name("gentel")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lost", r"the rule 'lost' of recall-broken cannot be used \(ModuleNotFoundError: No"),
        ("nameless", r"the rule 'nameless' of recall-broken cannot be used \(ValueError: .* must"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_its_package_and_harms_nothing_else(
    name, said, target
):
    install_gentle(target)
    install(target, "recall-broken", BROKEN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rules_of(RecallCallback(rule="rbf")) == ["Rbf", "Rbf"]
        assert rules_of(RecallCallback(rule="gentle")) == ["Gentle", "Gentle"]
    with pytest.raises(MisconfigurationException, match=said) as refused:
        RecallCallback(rule=name)
    assert "\n" not in str(refused.value)


def test_a_name_that_is_built_in_stays_what_it_is_with_a_word(target):
    install(target, "recall-clash", CLASHES)
    install_gentle(target)
    with pytest.warns(UserWarning, match="the rule 'rbf' of recall-clash is left out: a built-in"):
        assert type(rule_by_name("rbf")) is Rbf
    assert "trainer" in METHOD_PLUGINS.complaints()  # its arguments would be --trainer.*
    assert set(METHOD_PLUGINS.working()) == {"gentle_fit"}


def test_a_name_of_two_packages_is_neithers(target):
    for package in ("recall-one", "recall-two"):
        install(target, package, {"rules": {"gentle": "recall_gentle:Gentle"}})
    install_gentle(target)
    with pytest.raises(
        PluginError, match="'gentle' of recall-gentle and recall-one and recall-two stands in"
    ):
        rule_by_name("gentle")


@pytest.mark.parametrize(
    ("group", "entry", "said"),
    [
        (RULE_PLUGINS, "mild = recall_gentle:Gentle", "its class Gentle has the name 'gentle'"),
        (RULE_PLUGINS, "mild = recall_gentle:GENTLE_FIT", "must be a subclass of MergeRule"),
        (METHOD_PLUGINS, "mild = recall_gentle:GENTLE_FIT", "'gentle_fit', which must be 'mild'"),
        (METHOD_PLUGINS, "mild = recall_gentle:GentleFit", "must be a recall_lightning.methods"),
        (STREAM_PLUGINS, "Mild = recall_gentle:CornersStream", "called CornersStream, which must"),
        (STREAM_PLUGINS, "Mild = recall_gentle:Gentle", "must be a subclass of TaskStream"),
    ],
)
def test_an_entry_point_has_to_name_the_right_kind_by_its_own_name(group, entry, said, target):
    install_gentle(target)
    name, _, value = entry.partition(" = ")
    install(target, "recall-mild", {group._group: {name: value}})
    with pytest.raises(PluginError, match=said):
        group.get(name)


def test_what_fails_is_imported_once_and_fails_again_alike(target):
    (target / "counts.py").write_text("import sys\nsys.counted.append(1)\nraise OSError('no disk')")
    install(target, "recall-counts", {"rules": {"counts": "counts:Rule"}})
    sys.counted = []
    try:
        for _ in range(2):
            with pytest.raises(PluginError, match=r"\(OSError: no disk\)"):
                Plugins("rules", [], lambda name, found: found).get("counts")
            with pytest.raises(PluginError, match=r"\(OSError: no disk\)"):
                rule_by_name("counts")
        assert len(sys.counted) == 3  # twice for two tables, and once for that of rules
    finally:
        del sys.counted


@pytest.mark.processes
def test_a_packages_rule_and_stream_are_named_in_a_recipe_and_on_the_command_line(run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(recipe.read_text() + "recall: {rule: gentle}\nforgetting: {folder: out}\n")
    run("fit", "-c", "mine.yaml", "--recall.end_rule", "Gentle", "--recall.end_rule.share", "0.5")
    record = json.loads((tmp_path / "out" / "task_matrix.json").read_text())
    assert record["tasks"] == ["upright", "turned"]


@pytest.mark.processes
def test_a_packages_method_is_trained_and_compared_and_its_version_is_kept(run, tmp_path):
    own = "half=gentle_fit:--gentle_fit.share 0.5"
    rows = ("--methods", "finetune,gentle_fit", "--variant", own)
    run("compare", "-c", "mine.yaml", *rows, "--seeds", "1", "--out", "out", others=BROKEN)
    kept = {
        label: json.loads((tmp_path / "out" / label / "seed_0" / "run.json").read_text())
        for label in ("finetune", "gentle_fit", "half")
    }
    assert len({str(run["matrix"]) for run in kept.values()}) == 3
    assert [run["method"] for run in kept.values()] == ["finetune", "gentle_fit", "gentle_fit"]
    assert "module recall_gentle" in kept["half"]["state"]


@pytest.mark.processes
def test_the_help_shows_what_packages_bring_and_what_of_it_is_broken(run):
    shown = run("fit", "--help", others=BROKEN | {"methods": CLASHES["methods"]}).out
    assert "--gentle_fit.*: the gentle rule (of recall-gentle)" in shown
    assert "  --gentle_fit.share" in shown
    assert "  gentle: rule of recall-gentle\n" in shown
    assert "  CornersStream: stream of recall-gentle\n" in shown
    assert "  LostStream: the stream 'LostStream' of recall-others cannot be used (Module" in shown
    assert "  ewc: the method 'ewc' of recall-others is left out: a built-in" in shown
    words = " ".join(run("compare", "--help").out.split()).replace("- ", "-")
    assert "gentle_fit (of recall-gentle)" in words


@pytest.mark.processes
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method=lost_fit", "--lost_fit.share=1"], "the method 'lost_fit' of recall-others can"),
        (["--data=LostStream"], "the stream 'LostStream' of recall-others cannot be used (Mod"),
        (["--recall.rule=lost"], "the rule 'lost' of recall-others cannot be used (ModuleNot"),
    ],
)
def test_what_is_broken_is_told_when_it_is_asked_for(given, said, run):
    ended = run("fit", "-c", "mine.yaml", *given, others=BROKEN, fails=True)
    assert ended.code == 2
    (line,) = [each for each in ended.err.splitlines() if "error: " in each]
    assert line.startswith("recall-lightning: error: ")
    assert said in line
    assert line.count(said) == 1
