"""After a task has ended, no sample of it is in any state or file."""

import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.merging.rules import Uniform
from recall_lightning.merging.rules.base import RULES
from recall_lightning.methods.table import METHODS
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    SnapshotSettings,
)
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from tests.support.callbacks import FEW, recall
from tests.support.training import Plain, loader, quiet_trainer, task_data


def tensors_in(state):
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors_in(value)]
    if isinstance(state, (list, tuple)):
        return [tensor for value in state for tensor in tensors_in(value)]
    return []


def samples_in(state, samples):
    """How many samples lie in a state as they are or scaled, with a 1 for a bias or without."""
    wide = [s.float() for s in samples]
    found = torch.zeros(len(wide), dtype=torch.bool)
    width = wide[0].numel()
    samples = nn.functional.normalize(torch.stack(wide).flatten(1).double())
    for tensor in tensors_in(state):
        for rows in (tensor, tensor.mT) if tensor.dim() > 1 else (tensor,):
            if rows.dim() and rows.shape[-1] in (width, width + 1):
                rows = rows.reshape(-1, rows.shape[-1])[:, :width].double()
                likeness = samples @ nn.functional.normalize(rows).T
                found |= (likeness.abs() > 1 - 1e-6).any(1)
    return int(found.sum())


def samples_in_files(folder, samples):
    """How many samples' bytes are in any file of a folder."""
    contents = [path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()]
    assert contents
    return sum(any(sample.numpy().tobytes() in c for c in contents) for sample in samples)


def inputs_of(task):
    return [sample for sample, _ in task_data(task)]


def ended(callback, folder, tasks=1, model=None, **kwargs):
    """Train tasks as a stream with Lightning's defaults; return the last checkpoint."""
    pairs = [(task_data(t), task_data(t)) for t in range(tasks)]
    stream = TaskStream.from_datasets(pairs, batch_size=4)
    saver = ModelCheckpoint(folder / "checkpoints", save_last=True)
    trainer = Trainer(
        max_epochs=tasks,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        callbacks=[callback, ForgettingMonitor("val/acc"), saver],
        **{"enable_progress_bar": False, "accelerator": "cpu"} | kwargs,
    )
    trainer.fit(model or Plain(), datamodule=stream)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


RECALLS = {name: {"rule": name, "every": 2} for name in RULES} | {
    "uniform": {"rule": Uniform(0.2), "every": 2},
    "product": {"rule": "rbf*importance", "every": 2},
    "recalibrated": {"buffers": "recalibrate"},
    "gradients": {"rule": "importance", "importance": ImportanceSettings("gradients", steps=1)},
    "low rank": {
        "rule": "subspace",
        "moments": MomentSettings(batches=1, width=3, rank=64),
        "merge_first_task": False,
    },
    "wide": {"moments": MomentSettings(width=3, rank=4)},
    "files": {"snapshots": SnapshotSettings(to="file")},
    "never at the end": {"end_rule": "never"},
}
NEEDS_SAMPLES = {"rbf", "cka", "cosine", "product"}


@pytest.mark.parametrize("name", RECALLS)
def test_no_checkpoint_of_an_ended_task_holds_a_sample_whatever_the_rule(name, tmp_path):
    few = {"samples": FEW} if name in NEEDS_SAMPLES else {}
    callback = RecallCallback(**RECALLS[name], **few)
    samples = inputs_of(0)
    assert samples_in(ended(callback, tmp_path), samples) == 0
    assert samples_in_files(tmp_path, samples) == 0
    assert samples_in(callback.state_dict(), samples) == 0
    assert not any(sample.numpy().tobytes() in pickle.dumps(callback) for sample in samples)


OF_SOME_MODELS = ("self_replay", "slao")
OF_ANY_MODEL = [m.name for m in METHODS.values() if m.callback and m.name not in OF_SOME_MODELS]


@pytest.mark.parametrize("name", OF_ANY_MODEL)
def test_no_checkpoint_of_an_ended_task_holds_a_sample_whatever_the_method(name, tmp_path):
    callback = METHODS[name].callback(**METHODS[name].defaults)
    samples = inputs_of(0)
    assert samples_in(ended(callback, tmp_path), samples) == 0
    assert samples_in_files(tmp_path, samples) == 0


def test_the_next_tasks_checkpoints_hold_none_of_the_last_tasks_samples(tmp_path):
    inside = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    stream = TaskStream.from_datasets([(task_data(t), task_data(t)) for t in (0, 1)], batch_size=8)
    trainer = quiet_trainer(
        recall(rule="rbf*subspace", every=2, samples=FEW),
        inside,
        enable_checkpointing=True,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(Plain(), datamodule=stream)
    held = {}
    for path in tmp_path.glob("*.ckpt"):
        state = torch.load(path)
        held[state["global_step"]] = [samples_in(state, inputs_of(task)) for task in (0, 1)]
    assert held[6][0] > 0  # those of the running task are there
    assert held[6][1] == 0
    assert held[9][0] == 0
    assert held[9][1] > 0


def test_a_fit_that_stops_early_leaves_no_sample_in_the_state():
    callback = recall(rule="rbf*subspace", samples=FEW)
    stop = EarlyStopping("val/acc", patience=1, min_delta=10, mode="max")
    trainer = quiet_trainer(callback, stop, max_epochs=9)
    trainer.fit(Plain(), loader(0), loader(0))
    assert trainer.current_epoch < 8
    assert samples_in(callback.state_dict(), inputs_of(0)) == 0


def test_a_state_of_an_earlier_version_loses_its_ended_tasks_samples_when_it_is_loaded():
    callback, samples = RecallCallback(rule="subspace"), inputs_of(0)
    quiet_trainer(callback).fit(Plain(), loader(0))
    state, old = callback.state_dict(), RecentBatches(4)
    old.keep([torch.stack(samples[:8]), torch.zeros(8)])
    state["statistics"]["recent_batches"] = old.state_dict()
    del state["tensors"]  # which they did not count
    assert samples_in(state, samples) == 8
    callback.load_state_dict(state)
    assert samples_in(callback.state_dict(), samples) == 0


class Writer(Plain):
    def __init__(self):
        super().__init__()
        self.net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
        )

    def forward(self, **batch):
        return self.net(**batch)

    def training_step(self, batch, batch_idx):
        return self(**batch).loss


@pytest.mark.parametrize(("end_rule", "in_memory"), [("auto", True), ("never", False)])
def test_where_moments_are_of_generated_sequences_no_checkpoint_holds_a_sample(
    end_rule, in_memory, tmp_path
):
    """In memory they are where a rule needs the inputs of the task itself."""
    callback = RecallCallback(
        every=2, end_rule=end_rule, moments=MomentSettings(source="generated")
    )
    ids = torch.randint(0, 64, (32, 12))
    data = DataLoader([{"input_ids": each, "labels": each} for each in ids], 4)
    seen = []

    class Saves(ModelCheckpoint):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append(len(callback._merge._recent.batches))

    saver = Saves(tmp_path, every_n_train_steps=1, save_top_k=-1)
    quiet_trainer(callback, saver, enable_checkpointing=True).fit(Writer(), data)
    assert any(seen) == in_memory
    assert seen[-1] == 0
    assert len(list(tmp_path.glob("*.ckpt"))) == 8
    assert samples_in_files(tmp_path, ids) == 0
    for path in tmp_path.glob("*.ckpt"):
        assert samples_in(torch.load(path), ids) == 0


def test_a_run_on_generated_sequences_that_resumes_writes_as_many_as_it_would_have(tmp_path):
    ids = torch.randint(0, 64, (32, 12))
    data = DataLoader([{"input_ids": each, "labels": each} for each in ids], 4)

    def train(*others, checkpoint=None):
        torch.manual_seed(0)
        callback = RecallCallback(
            every=2, rule="kfac_importance", end_rule="never",
            moments=MomentSettings(source="generated"),
        )  # fmt: skip
        trainer = quiet_trainer(callback, *others, enable_checkpointing=bool(others), max_epochs=2)
        trainer.fit(Writer(), data, ckpt_path=checkpoint)
        return callback.state_dict()["statistics"]["moments"]["old"]

    whole = train(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    resumed = train(checkpoint=tmp_path / "epoch=0.ckpt")
    for name, moments in whole.items():
        for entry, tensor in moments.items():
            torch.testing.assert_close(resumed[name][entry], tensor)
