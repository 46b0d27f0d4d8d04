"""A run to be started in one or several processes: what comes out must not depend on how many.

    python -m tests.support.sharded_runs STRATEGY PROCESSES FOLDER
        [--resume FOLDER] [--precision PRECISION]

STRATEGY is single, ddp, fsdp, distributed (FSDP2 with distributed checkpoints), files (DDP with
snapshots in files) or unequal (DDP on batches of unequal sizes). Writes ``FOLDER/RULE-RANK.pt`` for
each rule, or those in RESUMED, with a checkpoint from the middle of the second task, where one is
needed.
"""

import argparse
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.callbacks._limits import Exceeded
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    SampleSettings,
    SnapshotSettings,
)
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.sharding import whole
from tests.support.strategies import own_rank, strategy_of
from tests.support.training import Plain, quiet_trainer, task_data

RULES = {
    "uniform": {"rule": Uniform(0.2)},
    "importance": {"rule": "importance"},
    "gradients": {"rule": "importance", "importance": ImportanceSettings("gradients", steps=4)},
    "subspace": {"rule": "subspace"},
    "low rank": {"rule": "subspace", "moments": MomentSettings(width=9, rank=3)},
    "two": {
        "rule": "cka",
        "end_rule": "cosine",
        "samples": SampleSettings(typical=8, pool=16),
        "snapshots": SnapshotSettings(number=2),
    },
    "paper": {"rule": "rbf", "samples": SampleSettings(typical=8, pool=16)},
    "default": {"refit_head": False},  # of a sharded model it is not fitted anew
    "rolled back": {"limits": True},
}
RESUMED = ("two", "gradients", "default", "rolled back")


class Scale(nn.Module):
    """One number, of which all but one process hold nothing."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return inputs * self.scale


class Uneven(Plain):
    """Layers that two processes can't share evenly, one of them sharded on its own."""

    def __init__(self):
        super().__init__(
            nn.Sequential(
                nn.Sequential(nn.Linear(8, 15), nn.LayerNorm(15), nn.ReLU()),
                nn.Sequential(nn.Linear(15, 15), nn.ReLU(), Scale()),
                nn.Linear(15, 2),
            )
        )
        self.sharded = False

    def configure_model(self):
        if self.sharded or self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        self.sharded = True
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.net[0], mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class SaveAfter(Callback):
    """Saves one checkpoint, in the middle of the second task."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 13:
            trainer.save_checkpoint(self.path)


class Unequal(IterableDataset):
    """Samples of which the first process has fewer a batch than the second."""

    def __iter__(self):
        inputs, labels = task_data(0).tensors
        size = 6 * int(os.environ.get("LOCAL_RANK", 0)) + 2
        for start in range(8):
            yield inputs[start : start + size], labels[start : start + size]


def train_unequally(strategy):
    """Merge while one process has typical samples and the other still lacks them."""
    recall = RecallCallback(every=1, rule="rbf", samples=SampleSettings(typical=8, pool=8))
    trainer = quiet_trainer(recall, strategy=strategy, devices=2)
    trainer.fit(Plain(), DataLoader(Unequal(), batch_size=None))
    return {"steps": [record["step"] for record in recall.history]}


def train(strategy, processes, arguments, save=None, resume=None, **options):
    torch.manual_seed(0)
    model = Uneven()
    limits = {"forgetting": 0.5} if arguments.pop("limits", False) else None
    recall = RecallCallback(every=3, **arguments)
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    if limits:
        monitor._limits.not_kept = lambda values: [Exceeded("forgetting", 1.0, 0.5)]
    pairs = [(task_data(task), task_data(task + 2, 16)) for task in range(2)]
    stream = TaskStream.from_datasets(pairs, batch_size=8 // processes, epochs_per_task=1)
    trainer = quiet_trainer(
        *[recall, monitor, *([SaveAfter(save)] if save else [])],
        strategy=strategy,
        devices=processes,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        **options,
    )
    trainer.fit(model, datamodule=stream, ckpt_path=resume)
    weights = named_weights(model)
    return {
        "weights": {name: whole(weight).detach().clone() for name, weight in weights.items()},
        "coefficients": [record["coefficient"] for record in recall.history],
        "drift": [record["drift"] for record in recall.history],
        "matrix": monitor.matrix,
        "snapshot": recall.snapshots[-1].nbytes,
        "files": sorted(path.name for path in Path(trainer.default_root_dir).rglob("task_*")),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("processes", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--precision", default="32-true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)

    if given.kind == "unequal":
        result = train_unequally(strategy_of(given.kind, given.processes))
        torch.save(result, given.folder / f"unequal-{own_rank()}.pt")
        return
    few = given.resume or given.kind in ("distributed", "files") or given.precision != "32-true"
    for name in RESUMED if few else RULES:
        save = given.folder / f"{name}.ckpt" if name in RESUMED and not given.resume else None
        start = given.resume / f"{name}.ckpt" if given.resume else None
        options = {"default_root_dir": given.folder / name, "precision": given.precision}
        arguments = dict(RULES[name])
        if given.kind == "files":
            kept = arguments.get("snapshots", SnapshotSettings())
            arguments["snapshots"] = replace(kept, to="file")
        strategy = strategy_of(given.kind, given.processes)
        result = train(strategy, given.processes, arguments, save, start, **options)
        torch.save(result, given.folder / f"{name}-{own_rank()}.pt")


if __name__ == "__main__":
    main()
