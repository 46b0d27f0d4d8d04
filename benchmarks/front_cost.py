"""What the front of merges, and the estimates of forgetting, cost beside the training of a task.

    python -m benchmarks.front_cost [--steps 1000]

Trains three recipes' streams so many steps a task, with ``RecallCallback`` merging once at each
task's end under ``plasticity=0.95``. In that one run it is timed what the search for the balance
takes at a task's end (all merges that are tried, the one that is made, and the losses and
divergences that are measured of each) and what the estimates of forgetting take: those of each
merge, on what a language model wrote, and in the course of a task. Both are laid beside the time
that training itself took: from the first batch to the last, without validation and without any hook
of ``RecallCallback``. Writes ``benchmarks/results/front_cost.md``.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.compare.worker import fit
from recall_lightning.recall import merge
from recall_lightning.recall.plasticity import MeasuredPlasticity
from recall_lightning.recall.training_estimates import TrainingEstimates
from recall_lightning.recall.written_divergence import WrittenDivergence

STREAMS = {  # the recipe, steps an epoch
    "digits, permuted pixels, MLP of 43 thousand parameters": ("digits_permuted", 43),
    "text, tiny Llama of 0.16 million parameters": ("stdlib_text", 100),
    "instructions, LoRA on a Llama of 0.4 million parameters": ("five_tasks_tiny", 24),
}


def timed(taken: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same, and adds what it takes to a name's seconds."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            taken[name] = taken.get(name, 0.0) + time.perf_counter() - began

    return run


def measured(recipe: str, steps_an_epoch: int, steps: int, taken: dict[str, float]) -> list[str]:
    """Train a recipe's stream, and return what it took as cells of a row."""
    taken.clear()
    cli = fit([
        *("fit", "-c", f"recipes/{recipe}.yaml"),
        *("--data.init_args.epochs_per_task", str(-(-steps // steps_an_epoch))),
        *("--trainer.logger", "false", "--trainer.enable_checkpointing", "false"),
        *("--trainer.limit_val_batches", "0", "--trainer.check_val_every_n_epoch", "1"),
        *("--trainer.enable_progress_bar", "false"),
        *("--recall.merge_first_task", "true"),
    ])  # fmt: skip
    assert cli.profiler is not None
    callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
    recall = next(each for each in callbacks if isinstance(each, RecallCallback))
    monitor = next(each for each in callbacks if isinstance(each, ForgettingMonitor))
    training = monitor.record.seconds - cli.profiler.seconds_in(recall.state_key)
    ends = len(recall.history)
    return [
        str(ends),
        f"{cli.trainer.global_step / ends:.0f}",
        ", ".join(str(len(record["front"])) for record in recall.history),
        f"{training / ends:.1f}",
        f"{taken['front'] / ends:.2f}",
        f"{taken['estimates'] / ends:.3f}",
        f"{100 * (taken['front'] + taken['estimates']) / training:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_cost")
    parser.add_argument("--steps", type=int, default=1000, help="of a task, at least (1000)")
    given = parser.parse_args()
    taken: dict[str, float] = {}
    MeasuredPlasticity.merge = timed(taken, "front", MeasuredPlasticity.merge)  # type: ignore[method-assign]
    for owner, name in (
        (merge, "quadratic_forgetting"),
        (WrittenDivergence, "__init__"),
        (WrittenDivergence, "measured"),
        (TrainingEstimates, "measured"),
    ):
        setattr(owner, name, timed(taken, "estimates", getattr(owner, name)))
    rows = [
        [name, *measured(recipe, steps, given.steps, taken)]
        for name, (recipe, steps) in STREAMS.items()
    ]
    heads = ["stream", "tasks", "steps a task", "merges tried", "training, s a task"]
    write_page(
        "front_cost",
        "# What the front and the estimates cost\n\n"
        "Seconds a task of training alone, of the search for the balance at a task's end (all "
        "merges tried, that which is made, and the losses and divergences of each) and of the "
        "estimates of forgetting, at merges and in the course of a task, of one run each with one "
        "thread; the last column is the share of front and estimates in the seconds of training.",
        machine(),
        table(
            [
                *heads,
                "front, s a task",
                "estimates, s a task",
                "front and estimates, % of training",
            ],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
