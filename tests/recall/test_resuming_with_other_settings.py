"""What RecallCallback's settings mean to a checkpoint's state is followed, or refused by name."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Importance, Rbf, Uniform
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    SampleSettings,
    SnapshotSettings,
)
from tests.support.callbacks import FEW, statistic
from tests.support.resumed_runs import savers, stream, train

IN_FIRST, IN_SECOND, AT_END = 3, 15, 12  # steps: 6 batches an epoch, 2 epochs a task


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Train with some arguments, once, and return the checkpoint of a step."""
    runs = {}

    def of(step, **arguments):
        key = repr(arguments)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("run")
            train([RecallCallback(**arguments), *savers(runs[key], ["batch"])], stream())
        return runs[key] / f"step={step:03d}-batch.ckpt"

    return of


def resumed(checkpoint, **arguments):
    callback = RecallCallback(**arguments)
    result = train([callback], stream(), checkpoint)
    return callback, result


KFAC, LOW_RANK = {"every": 3}, MomentSettings(width=4, rank=3)
RBF = {"every": 3, "rule": "rbf", "samples": FEW}


@pytest.mark.parametrize(
    ("step", "before", "after", "said"),
    [
        (IN_SECOND, RBF, KFAC, r"holds no (importance|moments), which the rules need now"),
        (AT_END, RBF, KFAC, r"holds no (importance|moments), which .* of the 1 task\(s\)"),
        (IN_SECOND, {"rule": "importance"}, {"rule": "subspace"}, "holds no moments"),
        (IN_SECOND, {"rule": "subspace"}, KFAC, "holds no importance"),
        (
            IN_SECOND,
            {"rule": "importance", "end_rule": "subspace"},
            {"rule": "importance", "end_rule": "kfac_subspace"},
            "without the curvature that the kfac rules need",
        ),
        (
            IN_SECOND,
            KFAC | {"moments": LOW_RANK},
            KFAC,
            r"moments.width=\d+ keeps a matrix .* net.0.weight, .* of rank 3",
        ),
        (IN_SECOND, KFAC, KFAC | {"predictions": "values"}, "predictions='values'.* of 'classes'"),
        (IN_FIRST, KFAC, KFAC | {"blocks": ["net.0"]}, r"the blocks are .* and were"),
        (IN_SECOND, RBF, RBF | {"blocks": ["net.4"]}, r"the blocks are net.4 \(1\) and were"),
        (
            IN_FIRST,
            KFAC,
            KFAC | {"merge_first_task": False},
            "merge_first_task=False, .* began with",
        ),
        (IN_FIRST, KFAC | {"merge_first_task": False}, KFAC, "=True, .* began without a snapshot"),
    ],
)
def test_settings_in_which_the_state_means_nothing_are_refused(step, before, after, said, saved):
    with pytest.raises(MisconfigurationException, match=f"RecallCallback: .*{said}"):
        resumed(saved(step, **before), **after)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (IN_SECOND, KFAC, {"every": 2, "plasticity": 0.8}),
        (IN_SECOND, KFAC, {"every": 3, "rule": Importance(0.2), "end_rule": "never"}),
        (IN_SECOND, KFAC, KFAC | {"buffers": "recalibrate"}),
        (IN_SECOND, KFAC, KFAC | {"moments": MomentSettings(batches=2)}),
        (IN_SECOND, KFAC, KFAC | {"moments": LOW_RANK}),
        (IN_SECOND, KFAC, KFAC | {"merge_first_task": False}),
        (IN_SECOND, KFAC, KFAC | {"rule": Uniform(0.3), "end_rule": None}),
        (AT_END, KFAC, KFAC | {"blocks": ["net.4"]}),
        (IN_SECOND, RBF, RBF | {"samples": SampleSettings(typical=4, pool=9)}),
        (IN_SECOND, RBF, RBF | {"rule": Rbf(temperature=2)}),
        (IN_FIRST, {"rule": Uniform(0.2)}, RBF),
    ],
)
def test_settings_in_which_the_state_means_the_same_are_followed(step, before, after, saved):
    callback, result = resumed(saved(step, **before), **after)
    assert result["step"] == 24
    last = 20 if after.get("end_rule") == "never" else 24
    assert callback.history[-1]["step"] >= last


def test_one_snapshot_stays_where_several_are_kept_from_now_on(saved, recwarn):
    more = RBF | {"snapshots": SnapshotSettings(2)}
    for step in (IN_FIRST, AT_END):
        callback, _ = resumed(saved(step, **RBF), **more)
        assert [old["task"] for old in callback.history[-1]["earlier"]] == [0]
    assert not [w for w in recwarn if "snapshots of earlier tasks" in str(w.message)]


def test_a_checkpoint_of_an_earlier_version_has_its_snapshot_too(saved, tmp_path):
    checkpoint = torch.load(saved(IN_FIRST, **RBF))
    state = next(s for k, s in checkpoint["callbacks"].items() if k.startswith("Recall"))
    state["snapshots"]["rest"] = ""
    torch.save(checkpoint, tmp_path / "old.ckpt")
    callback, _ = resumed(tmp_path / "old.ckpt", **RBF | {"snapshots": SnapshotSettings(2)})
    assert [old["task"] for old in callback.history[-1]["earlier"]] == [0]


def test_an_importance_source_that_is_set_counts_at_once(saved):
    before = {"rule": "importance", "importance": ImportanceSettings("optimizer")}
    after = before | {"importance": ImportanceSettings("gradients", steps=3)}
    callback, _ = resumed(saved(AT_END - 1, **before), **after)
    assert statistic(callback, "importance")._gradients.count == 3
    assert statistic(callback, "importance")._found == "gradients"


def test_another_rank_is_that_of_the_moments_from_now_on(saved):
    def arguments(rank):
        return {"rule": "subspace", "moments": MomentSettings(width=4, rank=rank)}

    callback, _ = resumed(saved(IN_SECOND, **arguments(3)), **arguments(5))
    old = statistic(callback, "moments").known.inputs["net.0.weight"]
    assert (old.rank, len(old.factor)) == (5, 5)
