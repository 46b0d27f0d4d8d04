"""Runs that are compared bit by bit with ones that were interrupted.

Their Trainer is a user's: with the sanity check, checkpoints and progress bar that it has by
default, and a logger, by default one that writes nothing: figures take longer than training.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from recall_lightning import ForgettingMonitor, TaskStream
from tests.support.training import Plain, loader, task_data

TASKS = 2


class AfterValidation(ModelCheckpoint):
    """Saves after a validation."""


class AfterEpoch(ModelCheckpoint):
    """Saves at the very end of an epoch."""


class Random(Plain):
    """A module whose training draws at random and leaves more behind than weights."""

    def __init__(self):
        super().__init__(
            nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
            )
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)]


def savers(folder, moments):
    """Checkpoint callbacks that keep everything, at the given moments of a run."""
    shutil.rmtree(folder, ignore_errors=True)
    every = {
        "batch": lambda: ModelCheckpoint(
            folder, "{step:03d}-batch", every_n_train_steps=1, save_top_k=-1
        ),
        "validation": lambda: AfterValidation(folder, "{step:03d}-validation", save_top_k=-1),
        "epoch": lambda: AfterEpoch(
            folder, "{step:03d}-epoch", save_top_k=-1, save_on_train_epoch_end=True
        ),
    }
    return [every[moment]() for moment in moments]


def stream(**kwargs):
    kwargs = {"epochs_per_task": 2, "batch_size": 9, "val_fraction": 0.2} | kwargs
    return TaskStream.from_datasets([task_data(task) for task in range(TASKS)], **kwargs)


def train(callbacks, datamodule=None, checkpoint=None, monitor_folder=None, **kwargs):
    """Train a stream, or the loaders of one if None, and return all that must come out the same."""
    torch.manual_seed(0)
    epochs = None if datamodule else 2
    model, monitor = Random(), ForgettingMonitor("val/acc", "max", monitor_folder, epochs)
    given = {"max_epochs": 2 * TASKS, "reload_dataloaders_every_n_epochs": 1} | kwargs
    with tempfile.TemporaryDirectory() as folder:
        own = {"accelerator": "cpu", "default_root_dir": folder, "logger": DummyLogger()}
        trainer = Trainer(callbacks=[*callbacks, monitor], **own | given)
        if datamodule is not None:
            trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)
        else:
            held_out = [loader(task, 16, shuffle=False) for task in range(TASKS)]
            trainer.fit(model, loader(0), held_out, ckpt_path=checkpoint)
    merges = [record for each in callbacks for record in getattr(each, "history", [])]
    return {
        "weights": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "merges": [{k: v for k, v in m.items() if not k.endswith("seconds")} for m in merges],
        "matrix": monitor.matrix,
        "measurements": monitor.record.measurements,
        "step": trainer.global_step,
    }


def differences(first, second, where=""):
    """Name what differs, bit by bit, between nested results."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, (dict, list, tuple)):
        if len(first) != len(second):
            return [f"{where}: {len(first)} and {len(second)} entries"]
        keys = first if isinstance(first, dict) else range(len(first))
        return [d for k in keys for d in differences(first[k], second[k], f"{where}.{k}")]
    return [] if repr(first) == repr(second) else [f"{where}: {first} and {second}"]


def resumed_from_each(folder, make_callbacks, moments, make_stream=lambda: None, **kwargs):
    """Return checkpoint name to what differs at the end of the run resumed from it."""
    kwargs["default_root_dir"] = folder
    whole = train(make_callbacks() + savers(folder, moments), make_stream(), **kwargs)
    checkpoints = sorted(Path(folder).glob("*.ckpt"))
    assert len(checkpoints) >= 2 * len(moments)
    return {
        path.name: found
        for path in checkpoints
        if (found := differences(whole, train(make_callbacks(), make_stream(), path, **kwargs)))
    }
