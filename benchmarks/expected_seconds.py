"""How near what ``RecallCallback.expected_seconds`` says of a run comes to what that run takes.

    python -m benchmarks.expected_seconds [--epochs 8]

Trains recipes' streams, under settings that take passes, merges, or both. On the first batch of
each task it is asked what the task will take, before anything of it is trained. What it takes is
the time in the hooks of ``RecallCallback`` until the task's end, in the same process. What training
takes is the rest of the time from that batch to the task's last, without validation. Writes
``benchmarks/results/expected_seconds.md``.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import RecallCallback
from recall_lightning.compare.measures import HookProfiler
from recall_lightning.compare.worker import fit
from recall_lightning.recall.expected_seconds import ExpectedSeconds

WIDE = "--model.init_args.model.init_args.sizes=[64, 1024, 1024, 10]"
IMPORTANCE = ["--recall.rule=importance", "--recall.every=20"]
STREAMS: dict[str, tuple[str, Sequence[str]]] = {
    "digits, small MLP (43 thousand parameters)": ("digits_permuted", []),
    "digits, small MLP, pre-trained": ("digits_permuted", ["--recall.merge_first_task=true"]),
    "digits, small MLP, `rule='importance', every=20`": ("digits_permuted", IMPORTANCE),
    "digits, small MLP, `rule='rbf', every=20`": (
        "digits_permuted",
        ["--recall.rule=rbf", "--recall.every=20"],
    ),
    "digits, wide MLP (1.1 million parameters)": ("digits_permuted", [WIDE]),
    "digits, wide MLP, `rule='importance', every=20`": ("digits_permuted", [WIDE, *IMPORTANCE]),
    "text, tiny Llama (0.16 million parameters), pre-trained": (
        "stdlib_text",
        ["--recall.merge_first_task=true"],
    ),
    "instructions, LoRA on a Llama (0.4 million parameters)": ("five_tasks_tiny", []),
}


@dataclass
class Task:
    """A task's seconds as expected, in hooks, and of training."""

    expected: ExpectedSeconds
    in_hooks: float
    training: float


class Expectation(Callback):
    """Asks ``RecallCallback`` at each task's start, and looks at the clock at its end."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._expected: ExpectedSeconds | None = None
        self._began = self._before = self._ended = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        recall = recall_of(trainer)
        if self._expected is None:
            assert recall.task_steps is not None
            self._expected = recall.expected_seconds(pl_module, batch, recall.task_steps)
            self._began, self._before = time.perf_counter(), in_hooks(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if recall_of(trainer).task_ended and self._expected is not None:
            now, taken = time.perf_counter(), in_hooks(trainer)
            training = now - self._began - (taken - self._before)
            self.tasks.append(Task(self._expected, taken - self._ended, training))
            self._expected, self._ended = None, taken


def recall_of(trainer: Trainer) -> RecallCallback:
    """Return the Trainer's RecallCallback."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(each for each in callbacks if isinstance(each, RecallCallback))


def in_hooks(trainer: Trainer) -> float:
    """Return the seconds in its hooks so far."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    assert isinstance(profiler, HookProfiler)
    return profiler.seconds_in(recall_of(trainer).state_key)


def measured(recipe: str, arguments: Sequence[str], epochs: int) -> list[Task]:
    """Train a recipe's stream, and return its tasks."""
    cli = fit([
        *("fit", "-c", f"recipes/{recipe}.yaml"),
        *("--data.init_args.epochs_per_task", str(epochs)),
        *("--trainer.logger", "false", "--trainer.enable_checkpointing", "false"),
        *("--trainer.limit_val_batches", "0", "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.enable_progress_bar", "false"),
        *("--trainer.callbacks+", "benchmarks.expected_seconds.Expectation"),
        *arguments,
    ])  # fmt: skip
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    # this module is another one for who imports it by its name
    return next(each.tasks for each in callbacks if type(each).__name__ == Expectation.__name__)


def row(name: str, tasks: Sequence[Task]) -> list[str]:
    """Return a stream's cells: of its tasks but the first, and of what the first has on top."""
    first, *others = tasks
    expected = mean(each.expected.together.seconds for each in others)
    found = mean(each.in_hooks for each in others)
    expected_training = mean(each.expected.training_seconds for each in others)
    training = mean(each.training for each in others)
    of_first = ["–"] * 3
    if first.expected.run:
        own = sum(work.seconds for work in first.expected.run.values())
        own += first.expected.together.seconds
        of_first = [f"{own:.2f}", f"{first.in_hooks:.2f}", f"{own / first.in_hooks:.2f}"]
    return [
        name,
        str(first.expected.steps),
        *(f"{expected:.2f}", f"{found:.2f}", f"**{expected / found:.2f}**"),
        f"{1000 * (found - expected) / first.expected.steps:.2f}",
        *of_first,
        *(f"{expected_training:.1f}", f"{training:.1f}", f"{expected_training / training:.2f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expected_seconds")
    parser.add_argument("--epochs", type=int, default=8, help="of each task (8)")
    given = parser.parse_args()
    rows = [
        row(name, measured(recipe, arguments, given.epochs))
        for name, (recipe, arguments) in STREAMS.items()
    ]
    write_page(
        "expected_seconds",
        "# How long it takes, expected and measured\n\n"
        "Seconds in the hooks of `RecallCallback` in a task, as "
        "`RecallCallback.expected_seconds` says on its first batch and as they were then, in the "
        "same process with one thread: the mean of all tasks but the first, and the first, where "
        "it merges, too. What the hooks themselves take at each step is not in what is expected. "
        "Of training that is the passes forward and backward alone; measured is all of it, with "
        "the optimizer, the loading of batches and the Trainer's loop.",
        machine(),
        table(
            [
                *("stream", "steps"),
                *("s a task, expected", "measured", "expected / measured"),
                "measured − expected, ms a step",
                *("first task, expected", "measured", "expected / measured"),
                *("training, expected", "measured", "expected / measured"),
            ],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
