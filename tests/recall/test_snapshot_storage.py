import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import SnapshotSettings
from recall_lightning.weights.snapshot_file import FileSnapshot
from tests.support.callbacks import FEW
from tests.support.resumed_runs import differences, resumed_from_each, savers, stream, train
from tests.support.training import Plain, loader, quiet_trainer


def recall(rule="kfac_importance", end_rule="auto", to="file", samples=None, **snapshots):
    stored = SnapshotSettings(to=to, **snapshots)
    return RecallCallback(every=3, rule=rule, end_rule=end_rule, samples=samples, snapshots=stored)


def files(folder):
    return sorted(path.name for path in Path(folder, "snapshots").glob("*"))


def fails(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("rule", "samples"), [("rbf", FEW), ("kfac_subspace", None), ("importance", None)]
)
def test_files_and_memory_merge_alike_bit_for_bit(rule, samples, tmp_path):
    runs = []
    for to in ("file", "checkpoint"):
        callback = recall(rule, to=to, samples=samples)
        runs.append(train([callback, *savers(tmp_path / to, ["validation"])], stream()))
        kinds = {isinstance(snapshot, FileSnapshot) for snapshot in callback.snapshots}
        assert kinds == {to == "file"}
    assert differences(*runs) == []


def test_a_forward_that_writes_into_its_weight_leaves_the_file_as_it_is(tmp_path):
    class Renormalised(Plain):
        def __init__(self):
            net = nn.Sequential(nn.EmbeddingBag(16, 8, max_norm=0.1), nn.Linear(8, 2))
            super().__init__(net)

    callback, model = recall("rbf", samples=FEW), Renormalised()
    before = model.net[0].weight.clone()
    data = TensorDataset(torch.randint(16, (64, 3)), torch.randint(2, (64,)))
    quiet_trainer(callback, default_root_dir=tmp_path).fit(model, DataLoader(data, batch_size=8))
    assert torch.equal(callback.snapshots[0]["net.0.weight"], before)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_with_files_resumes_exactly(number, tmp_path):
    def callbacks():
        return [recall("rbf", samples=FEW, number=number)]

    few_batches = partial(stream, batch_size=18)  # three an epoch
    assert resumed_from_each(tmp_path, callbacks, ["batch"], few_batches) == {}


def test_checkpoints_refer_to_the_file_and_hold_no_copy(tmp_path):
    sizes = []
    for to in ("file", "checkpoint"):
        train([recall(Uniform(0.2), to=to), *savers(tmp_path, ["batch"])], stream())
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
    callback = recall(on_missing="restart_task")
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
    callback = recall(Uniform(0.2))
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


@pytest.fixture
def crafted(tmp_path):
    """Change the callback's state in a run's first checkpoint."""
    train([recall(), *savers(tmp_path / "run", ["batch"])], stream())

    def craft(change):
        path = tmp_path / "run" / "step=003-batch.ckpt"
        checkpoint = torch.load(path)
        key = next(key for key in checkpoint["callbacks"] if key.startswith("Recall"))
        change(checkpoint["callbacks"][key]["snapshots"])
        torch.save(checkpoint, path)
        return path

    return craft


NAMES = ["../../home/model", "/home/model", "model", "", "..", "task_0-0123abcd/../../model"]


@pytest.mark.parametrize("entry", ["written", "elsewhere"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_bare_one_of_a_snapshot_is_refused(name, entry, crafted, tmp_path):
    victim = tmp_path / "run" / "snapshots" / "model.safetensors"
    victim.write_text("mine")
    path = crafted(lambda snapshots: snapshots[entry].append(name))
    with pytest.raises(MisconfigurationException, match=r"RecallCallback: .* is no name of a snap"):
        train([recall()], stream(), path, default_root_dir=tmp_path / "run")
    assert victim.exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "task_0-0000.safetensors"])
def test_a_reference_to_a_file_elsewhere_is_refused(name, crafted, tmp_path):
    path = crafted(lambda snapshots: snapshots["files"][0].update(name=name))
    with pytest.raises(MisconfigurationException, match="is no name of a snapshot's file"):
        train([recall()], stream(), path, default_root_dir=tmp_path / "run")


def test_on_a_checkpoints_word_nothing_is_removed_but_snapshots(crafted, tmp_path):
    folder, home = tmp_path / "run" / "snapshots", tmp_path / "home.safetensors"
    home.write_text("mine")
    (folder / "task_0-01234567.safetensors").write_text("mine")
    (folder / "link_0-01234567.safetensors").symlink_to(home)
    names = ["task_0-01234567", "link_0-01234567"]
    path = crafted(lambda snapshots: snapshots["written"].extend(names))
    before = files(tmp_path / "run")
    for other in (tmp_path / "run").glob("*.ckpt"):
        if other != path:
            other.unlink()
    path = shutil.move(path, tmp_path / "x.ckpt")
    last = ModelCheckpoint(tmp_path / "run", save_last=True)
    train([recall(), last], stream(), path, default_root_dir=tmp_path / "run")
    assert home.read_text() == "mine"
    assert set(before) - set(files(tmp_path / "run")) <= {n for n in before if "01234567" not in n}


class SavesByHand(Callback):
    def __init__(self, path, step=1):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("where", ["elsewhere/x.ckpt", "run/x.bin", "run/deeper/x.ckpt"])
def test_a_checkpoint_saved_by_hand_finds_its_file_whatever_was_removed_meanwhile(where, tmp_path):
    path, own = tmp_path / where, {"default_root_dir": tmp_path / "run"}
    last = ModelCheckpoint(tmp_path / "run", save_last=True)
    whole = train([recall(), SavesByHand(path, 4), last], stream(), **own)
    assert len(files(tmp_path / "run")) == 2
    for _ in range(2):  # what goes on from it leaves it the file too
        last = ModelCheckpoint(tmp_path / "run", save_last=True)
        assert differences(whole, train([recall(), last], stream(), path, **own)) == []


def test_a_checkpoint_saved_by_hand_and_moved_without_its_file_says_what_to_do(tmp_path):
    path = tmp_path / "elsewhere" / "x.ckpt"
    train([recall(), SavesByHand(path, 4)], stream(), default_root_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(MisconfigurationException, match="folder 'snapshots' beside the checkpoint"):
        train([recall()], stream(), path, default_root_dir=tmp_path / "other")


def test_a_checkpoint_saved_by_hand_to_a_remote_place_finds_its_file(tmp_path):
    path, own = "memory://by_hand/x.ckpt", {"default_root_dir": tmp_path / "run"}
    last = ModelCheckpoint(tmp_path / "run", save_last=True)
    whole = train([recall(), SavesByHand(path, 4), last], stream(), **own)
    assert differences(whole, train([recall()], stream(), path, **own)) == []


def test_two_runs_from_the_same_weights_leave_each_others_files(tmp_path):
    run = tmp_path / "run"
    first = ModelCheckpoint(run, "first", every_n_train_steps=3)
    train([recall(), first], stream(), max_steps=9)
    shutil.move(run / "first.ckpt", tmp_path / "first.ckpt")  # its file is not in the way
    before = files(run)
    train([recall(), ModelCheckpoint(run, save_last=True)], stream())
    assert set(before) <= set(files(run))


REMOTE = [
    (lambda: ModelCheckpoint(dirpath="memory://checkpoints"), None),
    (lambda: ModelCheckpoint(), "memory://root"),
    (None, "s3://bucket/root"),
]


@pytest.mark.parametrize(("saver", "root"), REMOTE)
def test_a_folder_that_is_on_no_disk_is_refused(saver, root):
    savers = [] if saver is None else [saver()]
    trainer = quiet_trainer(
        recall(), *savers, enable_checkpointing=bool(savers), default_root_dir=root
    )
    with pytest.raises(
        MisconfigurationException, match=r"local disk, and checkpoints go to \w+://"
    ):
        trainer.fit(Plain(), loader(0))


def test_snapshots_in_checkpoints_go_to_a_remote_place_and_come_back():
    saver = ModelCheckpoint("memory://runs", "{step}", every_n_train_steps=3, save_top_k=-1)
    whole = train([recall(to="checkpoint"), saver], stream())
    resumed = train([recall(to="checkpoint")], stream(), "memory://runs/step=3.ckpt")
    assert differences(whole, resumed) == []


def test_where_checkpoints_may_lie_anywhere_nothing_is_searched_and_what_one_names_is_kept(
    tmp_path,
):
    callback = recall(Uniform(0.2))
    (tmp_path / "somewhere").mkdir()

    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if callback.task == 0 and batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "somewhere" / "by_hand.ckpt")

    unreadable = tmp_path / "other.ckpt"  # another program's; it would forbid any removal
    unreadable.write_text("no checkpoint")
    model = Plain()
    for task in range(3):
        trainer = quiet_trainer(callback, Saves(), default_root_dir=tmp_path)
        trainer.fit(model, loader(task))
    kept = {path.name.partition("-")[0] for path in (tmp_path / "snapshots").iterdir()}
    assert kept == {"task_0", "task_2"}
