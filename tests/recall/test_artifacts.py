"""Weights and snapshots as artifacts of Weights & Biases."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file

from recall_lightning import ForgettingMonitor, RecallCallback, SnapshotSettings
from tests.callbacks.test_limits import NONE_AT_ALL, fit, stream
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain, loader, quiet_trainer
from tests.support.wandb_records import artifacts_of

IN_FILES = SnapshotSettings(to="file")


def logged(tmp_path, *others, **arguments):
    """Fit two tasks; return the model, the callback and what was logged as artifacts."""
    import wandb

    logger = WandbLogger(project="p", id="one", save_dir=tmp_path, offline=True)
    recall = RecallCallback(every=1.0, plasticity=0.9, **arguments)
    model, _ = fit(*others, recall, data=stream(2), logger=logger, default_root_dir=tmp_path)
    logger.experiment.finish()
    wandb.teardown()
    return model, recall, artifacts_of(tmp_path)


def test_weights_after_each_task_are_logged_with_what_its_merge_was(tmp_path):
    model, recall, found = logged(tmp_path, log_artifacts="weights")
    assert [one["name"] for one in found] == ["one-weights"] * 2
    assert [one["aliases"] for one in found] == [{"latest", "visit-0"}, {"latest", "visit-1"}]
    last, merge = found[-1]["metadata"], recall.history[-1]
    assert (last["task"], last["name"], last["visit"], last["step"]) == (1, "b", 1, 16)
    assert last["plasticity"] == pytest.approx(merge["plasticity"])
    assert last["coefficient"] == pytest.approx(merge["coefficient"])
    weights = load_file(found[-1]["files"]["weights.safetensors"])
    assert same(weights, weights_of(model))
    other = Plain()
    other.load_state_dict(weights)
    assert torch.equal(other.net[0].weight, model.net[0].weight)


def test_snapshots_are_logged_where_they_are_files(tmp_path):
    _, recall, found = logged(tmp_path, log_artifacts="snapshots", snapshots=IN_FILES)
    assert [one["type"] for one in found] == ["snapshot"] * 2
    assert [one["metadata"]["name"] for one in found] == ["a", "b"]
    assert same(load_file(found[-1]["files"]["snapshot.safetensors"]), recall.snapshots[-1])


def test_by_default_nothing_is_logged_and_with_true_all_there_is(tmp_path):
    assert logged(tmp_path / "none")[-1] == []
    found = logged(tmp_path / "all", log_artifacts=True, snapshots=IN_FILES)[-1]
    assert [one["type"] for one in found] == ["snapshot", "model"] * 2


def test_of_a_task_that_is_rolled_back_no_weights_are_logged(tmp_path):
    monitor = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback")
    *_, found = logged(tmp_path, monitor, log_artifacts=True)
    assert monitor.record.rolled_back == [1]
    assert [one["metadata"]["name"] for one in found] == ["a"]


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_without_validation_a_task_is_logged_unless_it_is_rolled_back(limit, tmp_path):
    import wandb

    limits = {"estimated_forgetting": limit}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    recall = RecallCallback(every=1.0, merge_first_task=False, log_artifacts="weights")
    logger = WandbLogger(project="p", id="one", save_dir=tmp_path, offline=True)
    fit(recall, monitor, data=stream(2), logger=logger, limit_val_batches=0)
    logger.experiment.finish()
    wandb.teardown()
    names = [one["metadata"]["name"] for one in artifacts_of(tmp_path)]
    assert names == (["a"] if limit == 0.0 else ["a", "b"])


@pytest.mark.parametrize(
    ("what", "wandb", "message"),
    [
        ("weights", False, "no logger that takes artifacts: give it a WandbLogger"),
        ("snapshots", True, r"they are in memory: set snapshots=SnapshotSettings\(to='file'\)"),
    ],
)
def test_what_nothing_would_come_of_is_refused(what, wandb, message, tmp_path):
    save = {"save_dir": tmp_path}
    logger = WandbLogger(offline=True, **save) if wandb else CSVLogger(**save)
    trainer = quiet_trainer(RecallCallback(log_artifacts=what), logger=logger)
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Plain(), loader(0))


def test_what_is_no_kind_of_artifact_is_refused():
    with pytest.raises(MisconfigurationException, match="log_artifacts='all' must be True, False"):
        RecallCallback(log_artifacts="all")
