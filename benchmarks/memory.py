"""What RecallCallback's snapshot adds to a training process's own memory.

    python -m benchmarks.memory [--millions 30 100 300] [--repeats 3]

Each number is from a process of its own, which trains a stack of linear layers with SGD, in float32
on the CPU, and merges every second step by the paper's rule, which measures under the snapshot's
weights. Memory is the highest RssAnon of ``/proc/self/status``, read every 2 ms: what the process
has for itself, without the pages of mapped files, which the system takes back when it needs them.
All processes import the same. glibc is told to give freed memory back at once, as else the peak
depends on which holes it happens to fill; what is shown is the median of the repeats. Writes
``benchmarks/results/memory.md``.
"""

import argparse
import json
import tempfile
from typing import Literal, get_args

from benchmarks.support.machine import machine
from benchmarks.support.memory import PeakMemory
from benchmarks.support.pages import write_page
from benchmarks.support.repeats import medians_of_processes
from benchmarks.support.tables import table

WIDTH = 1024
MIB = 1 << 20
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
Storage = Literal["none", "checkpoint", "file"]


def measure(millions: int, storage: Storage) -> dict[str, float]:
    """Train with snapshots in a storage, or with no callback, and return bytes and seconds."""
    import sklearn.cluster  # noqa: F401  # as the callback does
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from recall_lightning import RecallCallback
    from recall_lightning.recall.settings import SampleSettings, SnapshotSettings

    torch.manual_seed(0)

    class Stack(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            depth = round(millions * 1e6 / (WIDTH * (WIDTH + 1)))
            layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(depth)]
            self.layers = nn.Sequential(*layers)

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return self.layers(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    model = Stack()
    nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
    inputs = torch.randn(64, WIDTH)
    callbacks = []
    if storage != "none":
        recall = RecallCallback(
            every=2,
            rule="rbf",
            samples=SampleSettings(typical=8, pool=16),
            snapshots=SnapshotSettings(to=storage),
        )
        callbacks.append(recall)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=callbacks,  # type: ignore[arg-type]
        )
        with PeakMemory() as memory:
            trainer.fit(model, DataLoader(TensorDataset(inputs), batch_size=8))
    result = {"parameters": float(nbytes), "peak": float(memory.highest)}
    if callbacks:
        result["snapshot"] = float(recall.snapshots[0].nbytes)
        result["merges"] = float(len(recall.history))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.one[1])))
        return
    rows = []
    for millions in arguments.millions:
        own, memory, file = (
            medians_of_processes(
                "benchmarks.memory", ["--one", str(millions), storage], arguments.repeats, ALLOCATOR
            )
            for storage in get_args(Storage)
        )
        rows.append(
            [
                f"{own['parameters'] / 4e6:.0f} M, {own['parameters'] / MIB:.0f} MiB",
                f"{memory['snapshot'] / own['parameters']:.3f}",
                f"{(memory['peak'] - own['peak']) / MIB:.0f}",
                f"{(memory['peak'] - own['peak']) / own['parameters']:.3f}",
                f"{(file['peak'] - own['peak']) / MIB:.0f}",
            ]
        )
    heads = ["parameters", "snapshot / parameters"]
    heads += ["extra MiB, in memory", "× parameters", "extra MiB, in a file"]
    write_page(
        "memory",
        "What a snapshot adds to a training process's own memory: medians of "
        f"{arguments.repeats}, CPU, float32, one thread. {machine()}.",
        table(heads, rows),
    )


if __name__ == "__main__":
    main()
