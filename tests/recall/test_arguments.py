import math

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Importance, KfacSubspace, Uniform
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
    SnapshotSettings,
)
from tests.support.callbacks import FEW, Fixed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "mean"}, "rule='mean' is unknown"),
        ({"end_rule": "mean"}, "end_rule='mean' is unknown"),
        ({"rule": "never"}, "rule='never' is unknown"),
        ({"rule": int}, "rule=.* must be the name of a rule or a MergeRule object"),
        ({"rule": Uniform}, r"rule=Uniform is a class, and must be .*: rule=Uniform\(…\)"),
        ({"end_rule": 0.5}, "end_rule=0.5 must be the name of a rule or a MergeRule object"),
        ({"every": 0}, "every=0 must be"),
        ({"every": -0.5}, "every=-0.5 must be"),
        ({"every": 1.5}, "every=1.5 must be"),
        ({"every": True}, "every=True must be"),
        ({"every": math.nan}, "every=nan must be"),
        *[
            ({"plasticity": p}, f"plasticity={p} must be")
            for p in (0, -1.0, 1.0, math.inf, math.nan)
        ],
        ({"plasticity": 95}, "plasticity=95 must be .* for 95 % give 0.95"),
        ({"plasticity": True}, "plasticity=True must be 'auto', None, or a share between 0 and 1"),
        ({"plasticity": "much"}, "plasticity='much' must be"),
        ({"samples": {"typical": 8}}, "samples=.* must be a SampleSettings"),
        ({"moments": SampleSettings()}, "moments=.* must be a MomentSettings"),
        ({"seed": "a"}, "seed='a' must be a int"),
        ({"merge_first_task": "no"}, "merge_first_task='no' must be a bool"),
        ({"view": RecallCallback}, "view=.* must be a function"),
        ({"every": 1.0, "end_rule": "never"}, "every=1.0 with end_rule='never' merges nowhere"),
        ({"prior": "a text"}, "prior='a text' must be PriorSettings, a list of texts, or a Data"),
        ({"prior": (torch.ones(2, 8), torch.ones(2))}, r"prior=tuple must be .* batch \[batch\]"),
        (
            {"predictions": "numbers", "rule": "rbf", "plasticity": 0.9},
            "predictions='numbers' is no kind of prediction",
        ),
        ({"prior": torch.ones(2, 8)}, "prior=Tensor must be PriorSettings"),
        (
            {"plasticity": 0.9, "every": 0.5, "end_rule": "never"},
            "plasticity=0.9 has no effect with end_rule='never'",
        ),
        pytest.param({"prior": iter([1])}, "prior=.* can be read only once", id="an iterator"),
        ({"prior": []}, "prior=.* is empty: give texts or batches"),
        ({"prior": PriorSettings(), "rule": "rbf"}, "prior=PriorSettings.* has no effect: rbf do"),
        ({"prior": ["a"], "rule": "importance"}, "prior='1 texts' has no effect: importance does"),
        ({"prior": ["a"], "merge_first_task": False}, "prior='1 texts' has no effect with merge_f"),
        ({"view": 3}, "view=3 must be a function"),
        ({"buffers": "reset"}, "buffers='reset' is unknown: use 'keep', 'merge' or 'recalibrate'"),
        ({"optimizer_state": "forget"}, "optimizer_state='forget' is unknown: use 'keep' or"),
    ],
    ids=str,
)
def test_arguments_out_of_their_range_are_refused_at_once(arguments, message):
    with pytest.raises(MisconfigurationException, match=f"RecallCallback: {message}|^{message}"):
        RecallCallback(**arguments)


@pytest.mark.parametrize("argument", ["rule", "end_rule"])
def test_averaging_by_name_is_refused_as_nobody_said_by_how_much(argument):
    with pytest.raises(MisconfigurationException, match=rf"as in {argument}=Uniform\(0\.2\)"):
        RecallCallback(**{argument: "uniform"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "importance", "samples": FEW}, r"samples=Samp.* no effect: importance does not"),
        ({"samples": FEW}, "samples=.* kfac_importance and kfac_subspace do not need it"),
        ({"rule": "rbf", "importance": ImportanceSettings()}, "importance=.* no effect: rbf does"),
        ({"rule": "rbf", "moments": MomentSettings()}, "moments=.*for the subspace and kfac rules"),
        ({"rule": Fixed({}), "end_rule": "never", "samples": FEW}, "no effect: Fixed does not"),
        ({"rule": "rbf", "end_rule": Uniform(0.1), "moments": MomentSettings()}, "rbf and uniform"),
    ],
)
def test_settings_without_an_effect_are_refused_by_name(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        RecallCallback(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "rbf*importance", "samples": FEW, "importance": ImportanceSettings()},
        {"rule": "importance", "end_rule": "rbf", "samples": FEW},
        {"importance": ImportanceSettings(), "moments": MomentSettings()},
        {"rule": Uniform(0.1), "buffers": "recalibrate", "moments": MomentSettings(batches=3)},
    ],
)
def test_settings_that_one_rule_or_the_other_needs_are_taken(arguments, recwarn):
    RecallCallback(**arguments)
    assert not recwarn


@pytest.mark.parametrize("rule", ["rbf", "cka", "importance", "subspace", "rbf*importance"])
def test_a_rule_alone_merges_at_a_tasks_end_too(rule):
    callback = RecallCallback(rule=rule)
    assert callback.end_rule is callback.rule


def test_a_rule_with_a_partner_leaves_the_tasks_end_to_it():
    for given in ({}, {"rule": "kfac_importance"}):
        assert isinstance(RecallCallback(**given).end_rule, KfacSubspace)


@pytest.mark.parametrize("end_rule", ["kfac_subspace", KfacSubspace(ridge=0.1)])
def test_the_default_end_rule_leaves_a_share_by_default_however_it_is_given(end_rule):
    callback = RecallCallback(end_rule=end_rule)
    assert (callback.every, callback.plasticity) == (1.0, 0.95)


def test_an_end_rule_with_a_balance_of_its_own_has_that_left():
    callback = RecallCallback(end_rule=KfacSubspace(new_inputs=2.0))
    assert (callback.every, callback.plasticity) == (0.05, None)


def test_an_end_rule_that_is_given_counts_whatever_belongs_to_the_rule():
    own = Importance(scale=2.0)
    assert RecallCallback(end_rule=own).end_rule is own
    assert RecallCallback(end_rule="never").end_rule is None


def test_several_snapshots_need_rules_that_decide_about_several():
    two = SnapshotSettings(number=2)
    with pytest.raises(MisconfigurationException, match=r"snapshots\.number=2 needs .*Fixed"):
        RecallCallback(rule=Fixed({}), snapshots=two)
    with pytest.raises(MisconfigurationException, match=r"snapshots\.number=2 needs .*KfacSub"):
        RecallCallback(rule="rbf", end_rule="kfac_subspace", snapshots=two)
    RecallCallback(rule="rbf", end_rule="never", snapshots=two)


def test_a_checkpoint_says_in_plain_python_what_was_not_the_default():
    callback = RecallCallback(
        plasticity=0.8,
        rule=Uniform(0.2),
        snapshots=SnapshotSettings(2, device="cpu"),
        blocks=["net.*"],
    )
    assert callback.state_dict()["settings"] == {
        "blocks": ["net.*"],
        "plasticity": 0.8,
        "rule": "Uniform(weight=0.2)",
        "snapshots": {"device": "cpu", "number": 2},
    }


def test_maps_are_measured_for_a_rule_that_needs_the_current_tasks_alone():
    class OfNow(Fixed):
        needs = frozenset({"new_moments"})

    callback = RecallCallback(rule=OfNow({}), moments=MomentSettings(batches=2))
    assert [s.name for s in callback._statistics.active] == [
        "recent_batches",
        "moments",
        "step_sizes",
    ]


def test_numbers_of_numpy_are_kept_as_pythons_which_a_checkpoint_may_hold():
    callback = RecallCallback(every=np.float64(0.5), plasticity=np.float64(0.9))
    assert (type(callback.every), type(callback.plasticity)) == (float, float)
    settings = callback.state_dict()["settings"]
    assert {name: type(value) for name, value in settings.items()} == dict.fromkeys(
        ["every", "plasticity"], float
    )
