"""What earlier versions wrote is read, and leads where it led."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.callbacks.early_stopping import TaskEarlyStopping
from recall_lightning.merging.rules import MergeRule, Product
from recall_lightning.merging.rules.base import RULES
from recall_lightning.recall.migration import migrated_arguments, migrated_state
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    SampleSettings,
    SnapshotSettings,
)
from recall_lightning.recall.statistics.step_sizes import StepSizes
from tests.fixtures import make

FIXTURES = Path(make.__file__).parent
MINE = {"class_path": "mine.Rule"}
DEFAULTS_OF_THEN = {"every": 0.05, "plasticity": None}  # as a recipe without arguments had them
MOMENTS_OF_THEN = {"batches": 32, "width": 1024, "rank": 128}
MEASURED_OTHERWISE = {
    "recall_low_rank_moments": "another sketch",
    "recall_adapter": "a map's whole update is merged, then brought back to its rank",
    "recall_batch_norm_recalibrated": "scales of norms have a curvature too",
}
"""Whose merges decide from other measurements now, so that they end near, not at the same."""
SETTINGS = {
    "samples": SampleSettings,
    "importance": ImportanceSettings,
    "moments": MomentSettings,
    "snapshots": SnapshotSettings,
}


def rule_from(given):
    """Build a rule from its name or class, as the command line does."""
    if not isinstance(given, dict):
        return given
    classes = {rule.__name__: rule for rule in RULES.values()} | {"Product": Product}
    arguments = dict(given.get("init_args", {}))
    if "rules" in arguments:
        arguments["rules"] = [rule_from(each) for each in arguments["rules"]]
    return classes[given["class_path"]](**arguments)


def recall_from(arguments):
    """Build the callback that a recipe of the old form describes."""
    new, _ = migrated_arguments(arguments)
    for name, kind in SETTINGS.items():
        if isinstance(new.get(name), dict):
            new[name] = kind(**new[name])
    for name in ("rule", "end_rule"):
        if name in new:
            new[name] = rule_from(new[name])
    return RecallCallback(**new)


@pytest.mark.parametrize("kind", make.RECALL)
def test_a_checkpoint_of_an_earlier_version_leads_where_it_led(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(StepSizes, "share", 1.0)  # of a merge then, whatever the steps before it
    shutil.copytree(FIXTURES / "checkpoints" / kind, tmp_path, dirs_exist_ok=True)
    callback = recall_from(make.RECALL[kind] or DEFAULTS_OF_THEN)
    monitor = ForgettingMonitor("val/acc")
    callbacks = [callback, monitor]
    if kind == "recall_early_stopping":
        callbacks += [TaskEarlyStopping("val/acc", patience=1, min_delta=1.0)]
    with pytest.warns(UserWarning, match=r"earlier version.*statistics\.samples"):
        model = make.fit(kind, callbacks, tmp_path, tmp_path / "checkpoint.ckpt")
    then = torch.load(tmp_path / "end.pt")
    assert len(callback.history) == len(then["history"])
    for record, old in zip(callback.history, then["history"], strict=True):
        assert record["step"] == old["step"]
        assert record["coefficient"] == pytest.approx(old["coefficient"], abs=0.02)
    if kind not in MEASURED_OTHERWISE:
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, then["weights"][name], rtol=1e-3, atol=1e-5)
    assert monitor.matrix == then["matrix"]


def test_a_recipe_of_the_old_form_keeps_its_meaning():
    old = {"rule": "importance", "importance_scale": 0.3, "new_inputs": 2.0, "every": 3}
    new, said = migrated_arguments(old)
    assert new == {
        "every": 3,
        "rule": {"class_path": "Importance", "init_args": {"scale": 0.3}},
        "end_rule": {"class_path": "KfacSubspace", "init_args": {"new_inputs": 2.0}},
        "moments": MOMENTS_OF_THEN,
    }
    assert said[:2] == [
        "importance_scale is an argument of the rule, scale",
        "new_inputs is an argument of the rule, new_inputs",
    ]
    assert "end_rule that was the default then is kept" in said[2]


@pytest.mark.parametrize(
    "new",
    [
        {},
        {"every": 0.1, "rule": "rbf", "samples": {"typical": 8}},
        {"rule": "rbf*importance", "end_rule": "subspace", "snapshots": {"to": "file"}},
        {"rule": "rbf", "snapshots": 2},
        {"rule": {"class_path": "mine.Rule", "init_args": {"scale": 2}}},
    ],
    ids=str,
)
def test_a_recipe_of_todays_form_is_left_alone(new):
    assert migrated_arguments(new) == (new, [])


def test_migrating_twice_changes_nothing_more():
    old = {"rule": "rbf*uniform", "strength": 0.5, "typical_samples": 8, "snapshots": 2}
    new, said = migrated_arguments(old)
    assert said
    assert migrated_arguments(new) == (new, [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rule": "rbf", "end_rule": None, "temperature": 1.0}, {"rule": "rbf"}),
        (
            {"rule": "rbf", "temperature": 1.0},
            {"rule": "rbf", "end_rule": "kfac_subspace", "moments": MOMENTS_OF_THEN},
        ),
        (
            {"importance_scale": 0.1, "at_task_end": False},
            {"end_rule": "never", "moments": MOMENTS_OF_THEN},
        ),
        (
            {"rule": "kfac_importance", "end_rule": None, "new_inputs": 1.0},
            {"end_rule": "kfac_importance", "moments": MOMENTS_OF_THEN},
        ),
        (
            {"rule": "importance", "snapshots": 2, "snapshot_to": "file", "end_rule": None},
            {"snapshots": {"number": 2, "to": "file"}},
        ),
        ({"moment_batches": 4}, {"moments": MOMENTS_OF_THEN | {"batches": 4}, **DEFAULTS_OF_THEN}),
        ({"moment_width": 512}, {"moments": MOMENTS_OF_THEN | {"width": 512}, **DEFAULTS_OF_THEN}),
        (
            {"moment_batches": 4, "merge_first_task": False},
            {"moments": MOMENTS_OF_THEN | {"batches": 4}, "merge_first_task": False},
        ),
        (  # samples, which no rule used
            {"typical_samples": 4, "every": 3},
            {"moments": MOMENTS_OF_THEN, "every": 3, "plasticity": None},
        ),
        (
            {"typical_samples": 4, "rule": MINE},
            {"samples": {"typical": 4}, "end_rule": "kfac_subspace"},
        ),
        (
            {"rule": "uniform", "strength": [0.1, 0.3], "end_rule": None},
            {"rule": {"class_path": "Uniform", "init_args": {"weight": [0.1, 0.3]}}},
        ),
    ],
    ids=str,
)
def test_each_old_argument_has_its_place(old, new):
    found, _ = migrated_arguments(old)
    assert {name: found[name] for name in new} == new
    assert set(found) <= {*new, "rule"}


def test_a_state_of_today_is_left_alone():
    state = {"statistics": {"samples": {}, "importance": {}}, "history": []}
    assert migrated_state(state) == (state, [])


def test_rules_of_old_recipes_can_be_built():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback = recall_from({"rule": "rbf*importance", "sigma": 2.0, "importance_scale": 0.5})
    assert isinstance(callback.rule, MergeRule)
    assert repr(callback.rule) == (
        "Product(rules=[Rbf(temperature=1.0, sigma=2.0, strength=1.0), "
        "Importance(scale=0.5, strength=1.0)], strength=1.0)"
    )


def test_what_is_given_in_todays_form_goes_before_the_old_one():
    old = {"rule": "rbf", "typical_samples": 8, "samples": {"typical": 16, "pool": 256}}
    new, said = migrated_arguments(old)
    assert new["samples"]["typical"] == 16
    assert "typical_samples is samples.typical, which is given too and counts" in said
