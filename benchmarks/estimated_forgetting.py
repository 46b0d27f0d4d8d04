"""How well forgetting is foretold without old data.

    python -m benchmarks.estimated_forgetting [--seeds 0,1] [--jobs 2]

Runs RECALL with five settings, from keeping much to keeping next to nothing, on five recipes'
streams. At each task's end what is estimated, by the divergence on the task's own last batches, by
the curvature, by the divergence on what a pre-trained language model wrote, and by the weights'
distance, is laid beside what was forgotten of the tasks before: the mean fall of their validation
scores. Writes ``benchmarks/results/estimated_forgetting.md``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from scipy.stats import spearmanr

from benchmarks.support.comparisons import compared
from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import RecallCallback
from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.compare.results import Run
from recall_lightning.weights.naming import find_weights

RECIPES = ("digits_permuted", "digits_split", "digits_rotated", "stdlib_text", "five_tasks_tiny")
SETTINGS = {
    "0.5": "recall:--recall.every 1.0 --recall.plasticity 0.5",
    "0.8": "recall:--recall.every 1.0 --recall.plasticity 0.8",
    "0.95": "recall:--recall.every 1.0 --recall.plasticity 0.95",
    "0.9999": "recall:--recall.every 1.0 --recall.plasticity 0.9999",
    "default": "recall:",
}
ESTIMATES = {
    "divergence on the new task": "estimated_forgetting",
    "curvature": "quadratic_forgetting",
    "divergence on what it wrote": "written",
    "distance of weights": "distance",
}
_FILE = "estimates.json"


class Watch(Callback):
    """Writes what is estimated after each task into the run's folder."""

    def __init__(self) -> None:
        self.estimates: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a task's end, of which the weights have been merged, estimate."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        recall = next(each for each in callbacks if isinstance(each, RecallCallback))
        known = recall.estimates
        if not (recall.task_ended and known) or self._has(recall.visit):
            return
        snapshot = recall.snapshots[-1]
        live = find_weights(pl_module, snapshot)
        squares = [float((live[n] - snapshot[n]).square().sum()) for n in live]
        written = recall.history[-1].get("written_divergence", {}).get("merged")
        own = {"written": written, "distance": sum(squares) ** 0.5}
        self.estimates.append({"visit": recall.visit, **known, **own})
        folder = run_folder(trainer)
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(json.dumps(self.estimates))

    def _has(self, visit: int | None) -> bool:
        return any(each["visit"] == visit for each in self.estimates)


def ends(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Return the estimates of a run, each with the ``forgetting`` that was measured."""
    (file,) = (folder / run.label / f"seed_{run.seed}").rglob(_FILE)
    sign = 1 if run.mode == "max" else -1
    found = []
    for estimate in json.loads(file.read_text()):
        visit = estimate["visit"]
        if visit == 0:  # nothing was trained before
            continue
        before, after = run.matrix[visit - 1], run.matrix[visit]
        falls = [sign * ((before[old] or 0.0) - (after[old] or 0.0)) for old in range(visit)]
        found.append({**estimate, "forgetting": fmean(falls)})
    return found


def row(name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """Return a stream's row: the rank correlation of each estimate with what was forgotten."""
    measured = [each["forgetting"] for each in found]

    def rank(key: str) -> str:
        estimated = [each.get(key) for each in found]
        return "–" if None in estimated else f"{spearmanr(measured, estimated)[0]:.2f}"

    return [name, str(len(found)), *map(rank, ESTIMATES.values())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimated_forgetting")
    parser.add_argument("--seeds", default="0,1", help="joined by commas (0,1)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/estimated_forgetting"))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    watch = ["--trainer.callbacks+=benchmarks.estimated_forgetting.Watch"]
    rows = []
    for recipe in RECIPES:
        folder = given.out / recipe
        runs = compared(f"recipes/{recipe}.yaml", folder, SETTINGS, seeds, given.jobs, watch)
        rows.append(row(recipe, [end for run in runs for end in ends(run, folder)]))
        write_page(
            "estimated_forgetting",
            "# Forgetting, estimated without old data\n\n"
            "Spearman's rank correlation of what was estimated at a task's end with what was "
            f"forgotten in it, over the ends of tasks of five settings ({', '.join(SETTINGS)}) and "
            f"the seeds {given.seeds}.",
            machine(),
            table(["stream", "ends of tasks", *ESTIMATES], rows),
        )


if __name__ == "__main__":
    main()
