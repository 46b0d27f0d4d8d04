"""What a merge does to normalised layers: to their running statistics, and to the layer after them.

    python -m benchmarks.normalisation_buffers

Trains two small networks with BatchNorm on streams of digits with seeds 100 to 102, by each of
RecallCallback's ways with running statistics, and convolutions with several kinds of normalisation
on new classes in turn, with the last layer fitted anew and without: the accuracy on all tasks after
the last (average) and on each right after its training (plasticity). Writes
``benchmarks/results/normalisation_buffers.md``.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial
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

Scenario = Literal["permuted", "rotated", "split"]
TASKS: dict[Scenario, int] = {"permuted": 4, "rotated": 4, "split": 5}
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


def cnn(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    convolutions = [
        layer
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2))
        for layer in (
            nn.Conv2d(inputs, outputs, 3, stride, padding=1),
            norm(outputs),
            nn.ReLU(),
        )
    ]
    head = [nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), *convolutions, *head)


RUNS: list[tuple[Scenario, Callable[[], nn.Module]]]
RUNS = [("permuted", mlp), ("rotated", mlp), ("rotated", cnn)]

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "`BatchNorm2d`": nn.BatchNorm2d,
    "`GroupNorm` of 4": partial(nn.GroupNorm, 4),
    "none": nn.Identity,
}
REFITS: dict[str, dict[str, Any]] = {"where it is needed, the default": {}}
REFITS |= {"never": {"refit_head": False}, "always": {"refit_head": True}}


def scores(
    scenario: Scenario, network: Callable[[], nn.Module], seed: int, recall: RecallCallback
) -> tuple[float, float]:
    """Train one stream and return average and plasticity."""
    seed_everything(seed, verbose=False)
    stream = DigitsStream(
        scenario=scenario, num_tasks=TASKS[scenario], epochs_per_task=4, seed=seed
    )
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


def cells(
    scenario: Scenario, network: Callable[[], nn.Module], arguments: dict[str, Any]
) -> list[str]:
    """Return mean and standard deviation of both scores over the seeds."""
    found = [
        scores(scenario, network, seed, RecallCallback(merge_first_task=False, **arguments))
        for seed in SEEDS
    ]
    return [
        f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        for values in zip(*found, strict=True)
    ]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    of_buffers = [
        [
            f"digits {scenario}, {network.__name__}, {rule}",
            f"`{buffers}`",
            *cells(scenario, network, arguments | {"buffers": buffers}),
        ]
        for scenario, network in RUNS
        for rule, arguments in RULES.items()
        for buffers in get_args(Buffers)
    ]
    of_heads = [
        [norm, refit, *cells("split", partial(cnn, layer), arguments)]
        for norm, layer in NORMS.items()
        for refit, arguments in REFITS.items()
    ]
    found = ["average", "plasticity"]
    write_page(
        "normalisation_buffers",
        "BatchNorm's running statistics at a merge, by the `buffers` argument of "
        "`RecallCallback`: mean ± standard deviation over seeds 100 to 102 (those for choosing, "
        f"not for reporting), four tasks. {machine()}.",
        table(["stream, network, rule", "buffers", *found], of_buffers, names=2),
        "The same convolutions with several kinds of normalisation, on two new classes of digits "
        "in each of five tasks of 36 steps, by whether the last layer is fitted anew at their end "
        "(`refit_head`):",
        table(["normalisation", "last layer fitted", *found], of_heads, names=2),
    )


if __name__ == "__main__":
    main()
