import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback
from recall_lightning.weights.snapshot_file import FileSnapshot
from tests.support.resumed_runs import differences, resumed_from_each, savers, stream, train
from tests.support.training import Plain, loader, quiet_trainer

UNIFORM = {"rule": "uniform", "end_rule": None, "strength": 0.2}


def recall(**kwargs):
    kwargs = {"snapshot_to": "file", "typical_samples": 8, "pool_size": 16} | kwargs
    return RecallCallback(every=3, **kwargs)


def files(folder):
    return sorted(path.name for path in Path(folder, "snapshots").glob("*"))


def fails(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("rule", ["rbf", "kfac_subspace", "importance"])
def test_files_and_memory_merge_alike_bit_for_bit(rule, tmp_path):
    runs = []
    for to in ("file", "checkpoint"):
        callback = recall(snapshot_to=to, rule=rule, end_rule=None)
        runs.append(train([callback, *savers(tmp_path / to, ["validation"])], stream()))
        kinds = {isinstance(snapshot, FileSnapshot) for snapshot in callback.snapshots}
        assert kinds == {to == "file"}
    assert differences(*runs) == []


def test_a_forward_that_writes_into_its_weight_leaves_the_file_as_it_is(tmp_path):
    class Renormalised(Plain):
        def __init__(self):
            net = nn.Sequential(nn.EmbeddingBag(16, 8, max_norm=0.1), nn.Linear(8, 2))
            super().__init__(net)

    callback, model = recall(rule="rbf", end_rule="rbf"), Renormalised()
    before = model.net[0].weight.clone()
    data = TensorDataset(torch.randint(16, (64, 3)), torch.randint(2, (64,)))
    quiet_trainer(callback, default_root_dir=tmp_path).fit(model, DataLoader(data, batch_size=8))
    assert torch.equal(callback.snapshots[0]["net.0.weight"], before)


@pytest.mark.parametrize("snapshots", [1, 2])
def test_a_run_with_files_resumes_exactly(snapshots, tmp_path):
    def callbacks():
        return [recall(rule="rbf", end_rule="rbf", snapshots=snapshots)]

    assert resumed_from_each(tmp_path, callbacks, ["batch"], stream) == {}


def test_checkpoints_refer_to_the_file_and_hold_no_copy(tmp_path):
    sizes = []
    for to in ("file", "checkpoint"):
        train(
            [recall(snapshot_to=to, **UNIFORM), *savers(tmp_path, ["batch"])],
            stream(),
        )
        sizes.append(min(tmp_path.glob("*.ckpt")).stat().st_size)
    assert sizes[1] - sizes[0] > 4 * (8 * 16 + 16 + 2 * 16 + 16 * 2)  # parameters


@pytest.fixture
def moved(tmp_path):
    """A run's folder after it has been moved, and the run's result."""
    folder = tmp_path / "before"
    whole = train([recall(), *savers(folder, ["batch"])], stream())
    moved = shutil.move(folder, tmp_path / "after")
    return Path(moved), whole


def test_a_moved_folder_still_resumes(moved, tmp_path):
    folder, whole = moved
    assert (
        differences(
            whole,
            train([recall()], stream(), folder / "step=009-batch.ckpt", default_root_dir=tmp_path),
        )
        == []
    )


def damage(folder, how):
    for path in Path(folder, "snapshots").iterdir():
        content = path.read_bytes()
        path.unlink()
        if how != "missing":
            path.write_bytes(content[:-8] if how == "truncated" else content[:-8] + b"\1" * 8)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"task 0 .*after.snapshots.task_0-\w+\.safetensors, of 8 weights.* is missing"),
        ("truncated", r"task 0 .* of 8 weights and [\d,]+ bytes, has [\d,]+ bytes"),
        ("altered", "task 0 .* has been altered"),
    ],
)
def test_a_lost_file_is_named_with_what_it_held_and_how_to_go_on(how, said, moved, tmp_path):
    damage(moved[0], how)
    with pytest.raises(MisconfigurationException, match=f"{said}.*put the file back.*restart_task"):
        train([recall()], stream(), moved[0] / "step=003-batch.ckpt", default_root_dir=tmp_path)


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_task_whose_file_is_lost_starts_anew_if_asked_to(how, moved, tmp_path):
    damage(moved[0], how)
    callback = recall(on_missing_snapshot="restart_task")
    with pytest.warns(UserWarning, match="task 0 .*goes on without it"):
        train([callback], stream(), moved[0] / "step=003-batch.ckpt", default_root_dir=tmp_path)
    steps = [record["step"] for record in callback.history if record["task"] == 0]
    assert steps == [6, 9, 12]  # every 3 steps from 3 on, with a snapshot taken there
    assert len(callback.snapshots) == 1


def test_after_a_tasks_end_its_lost_file_is_not_missed(moved, tmp_path):
    folder, whole = moved
    damage(folder, "missing")
    assert (
        differences(
            whole,
            train([recall()], stream(), folder / "step=012-batch.ckpt", default_root_dir=tmp_path),
        )
        == []
    )


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_snapshot_in_memory(call, tmp_path, monkeypatch):
    callback = recall(**UNIFORM)
    monkeypatch.setattr(os, call, fails)
    trainer = quiet_trainer(callback, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"No space left.*memory"):
        trainer.fit(Plain(), loader(0))
    assert len(callback.history) == 3
    assert not isinstance(callback.snapshots[0], FileSnapshot)
    assert files(tmp_path) == []


def test_a_full_disk_stops_the_run_if_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", fails)
    trainer = quiet_trainer(recall(on_failed_write="error"), default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match=r"task 0 could not be stored .*No space"):
        trainer.fit(Plain(), loader(0))
    assert files(tmp_path) == []


def test_files_are_removed_once_no_checkpoint_refers_to_them(tmp_path):
    train([recall(), *savers(tmp_path, ["batch"])], stream())
    assert len(files(tmp_path)) == 2  # every checkpoint was kept
    shutil.rmtree(tmp_path)
    train([recall(), ModelCheckpoint(tmp_path, save_last=True)], stream())
    assert [name[:6] for name in files(tmp_path)] == ["task_1"]


def test_a_checkpoint_that_cannot_be_read_keeps_all_files(tmp_path):
    tmp_path.joinpath("other.ckpt").write_bytes(b"no archive")
    train([recall(), ModelCheckpoint(tmp_path, save_last=True)], stream())
    assert len(files(tmp_path)) == 2


def test_files_of_other_runs_are_left_alone(tmp_path):
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "task_0-01234567.safetensors").touch()
    train([recall(), ModelCheckpoint(tmp_path, save_last=True)], stream())
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"snapshot_to": "disk"}, "snapshot_to='disk' is unknown: use 'checkpoint' or 'file'"),
        ({"on_missing_snapshot": "skip"}, "on_missing_snapshot='skip' is unknown"),
        ({"on_failed_write": "skip"}, "on_failed_write='skip' is unknown"),
    ],
)
def test_unknown_choices_are_refused(arguments, said):
    with pytest.raises(MisconfigurationException, match=said):
        recall(**arguments)


def test_a_folder_that_is_on_no_disk_is_refused(tmp_path):
    checkpoints = ModelCheckpoint(dirpath="memory://checkpoints")
    trainer = quiet_trainer(recall(), checkpoints, enable_checkpointing=True)
    with pytest.raises(MisconfigurationException, match="local disk, and checkpoints go to memory"):
        trainer.fit(Plain(), loader(0))
