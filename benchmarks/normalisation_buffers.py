"""Which of RecallCallback's ways with BatchNorm's running statistics keeps most: its default.

    python -m benchmarks.normalisation_buffers

Trains two small networks with BatchNorm on streams of digits with seeds 100 to 102: the accuracy on
all tasks after the last (average) and on each right after its training (plasticity). Writes
``benchmarks/results/normalisation_buffers.md``.
"""

import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import DigitsStream
from recall_lightning.metrics import average, plasticity
from recall_lightning.models import ClassifierModule
from recall_lightning.recall.settings import Buffers

Scenario = Literal["permuted", "rotated"]
TASKS = 4
SEEDS = (100, 101, 102)
PAPER = {"every": 0.1, "rule": "rbf"}
RULES: dict[str, dict[str, Any]] = {"default": {}, "paper's, ten times a task": PAPER}


def mlp() -> nn.Module:
    hidden = [
        layer
        for inputs in (64, 128)
        for layer in (nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU())
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))


def cnn() -> nn.Module:
    convolutions = [
        layer
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2))
        for layer in (
            nn.Conv2d(inputs, outputs, 3, stride, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )
    ]
    head = [nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), *convolutions, *head)


RUNS: list[tuple[Scenario, Callable[[], nn.Module]]]
RUNS = [("permuted", mlp), ("rotated", mlp), ("rotated", cnn)]


def scores(
    scenario: Scenario, network: Callable[[], nn.Module], seed: int, recall: RecallCallback
) -> tuple[float, float]:
    """Train one stream and return average and plasticity."""
    seed_everything(seed, verbose=False)
    stream = DigitsStream(scenario=scenario, num_tasks=TASKS, epochs_per_task=4, seed=seed)
    monitor = ForgettingMonitor(monitor="val/acc")
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[recall, monitor],
    )
    trainer.fit(ClassifierModule(network(), num_classes=10), datamodule=stream)
    matrix = torch.tensor(monitor.matrix)
    return float(average(matrix)), float(plasticity(matrix))


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for scenario, network in RUNS:
        for rule, arguments in RULES.items():
            for buffers in get_args(Buffers):
                found = []
                for seed in SEEDS:
                    recall = RecallCallback(merge_first_task=False, buffers=buffers, **arguments)
                    found.append(scores(scenario, network, seed, recall))
                cells = [
                    f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
                    for values in zip(*found, strict=True)
                ]
                what = f"digits {scenario}, {network.__name__}, {rule}"
                rows.append([what, f"`{buffers}`", *cells])
    write_page(
        "normalisation_buffers",
        "BatchNorm's running statistics at a merge, by the `buffers` argument of "
        "`RecallCallback`: mean ± standard deviation over seeds 100 to 102 (those for choosing, "
        f"not for reporting), four tasks. {machine()}.",
        table(["stream, network, rule", "buffers", "average", "plasticity"], rows, names=2),
    )


if __name__ == "__main__":
    main()
