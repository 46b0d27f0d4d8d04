"""What is left of RECALL where nobody tells it the boundaries.

    python -m benchmarks.hidden_boundaries [--seeds 0,1,2] [--jobs 2]

Trains four recipes' streams by fine-tuning, jointly, with RECALL that knows the boundaries, and
with RECALL that has to notice them, on two streams by each detector; two streams again with tasks
that go over into one another; and one task alone for 9,976 steps, in which there is nothing to
notice. Writes
``benchmarks/results/hidden_boundaries.md``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.support.comparisons import compared
from benchmarks.support.gradual import FADE
from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import RecallCallback
from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.compare.results import Run, by_seed, confidence_interval, gap_closed
from recall_lightning.compare.tables import cell

RECIPES = ("digits_permuted", "digits_split", "digits_rotated", "stdlib_text")
GRADUAL = ("digits_permuted", "digits_split")
_SETTINGS = "recall:--recall.boundaries DriftSettings --recall.boundaries"
DRIFT = {
    "Page-Hinkley": "recall:--recall.boundaries drift",
    "ADWIN": f"{_SETTINGS}.detector adwin",
    "KSWIN": f"{_SETTINGS}.detector kswin",
    "Page-Hinkley, representations too": f"{_SETTINGS}.signals [loss,representations]",
}
BESIDE = {"fine-tuning": "finetune:", "joint": "joint:", "known": "recall:"}
ALL_DETECTORS = ("digits_permuted", "stdlib_text")  # where all are tried, with abrupt changes
ALONE = "digits_permuted"
ONE_TASK = ["--data.num_tasks", "1", "--data.epochs_per_task", "232"]  # 9,976 steps
_FILE = "changes.json"


class Watch(Callback):
    """Writes what was noticed into the run's folder, and how many steps there were."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        found = [each for each in callbacks if isinstance(each, RecallCallback)]
        folder = run_folder(trainer)
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        content = {"changes": found[0].changes if found else [], "steps": trainer.global_step}
        (folder / _FILE).write_text(json.dumps(content))


WATCH = ["--trainer.callbacks+=benchmarks.hidden_boundaries.Watch"]


def noticed(
    changes: Sequence[int], boundaries: Sequence[int], steps: int, early: int = 0
) -> tuple[list[int], int, int]:
    """Return by how many steps each boundary was noticed late, how many never, and false alarms.

    Args:
        changes: The steps at which a change was noticed.
        boundaries: The steps at which there was one.
        steps: Of the whole run.
        early: How many steps before a boundary the next task begins to come in.

    Example:
        >>> noticed([12, 30, 55], [10, 50, 70], 90)
        ([2, 5], 1, 1)
    """
    delays, missed, right = [], 0, set()
    for start, end in zip(boundaries, [*boundaries[1:], steps], strict=True):
        within = [step for step in changes if start - early <= step < end - early]
        if within:
            delays.append(within[0] - start)
            right.add(within[0])
        else:
            missed += 1
    return delays, missed, len(set(changes) - right)


def read(run: Run, folder: Path) -> tuple[list[int], list[int], int]:
    """Return at which steps a run noticed changes, its boundaries, and how many steps it had."""
    where = folder / run.label.replace(" ", "_") / f"seed_{run.seed}"
    (file,), (matrix,) = where.rglob(_FILE), where.rglob("task_matrix.json")
    content = json.loads(file.read_text())
    boundaries = [step for step, _ in json.loads(matrix.read_text())["boundaries"]][1:]
    return [change["step"] for change in content["changes"]], boundaries, content["steps"]


def closed(runs: Mapping[str, Sequence[Run]], label: str) -> str:
    """Return the share of the gap from fine-tuning to joint training that a setting closes."""
    every = [run for own in runs.values() for run in own]
    trio = (by_seed(every, name, "average") for name in (label, "fine-tuning", "joint"))
    return cell(confidence_interval(gap_closed(*trio).values()), len(runs[label]), 1)


def row(
    name: str, label: str, runs: Mapping[str, Sequence[Run]], folder: Path, fade: float
) -> list[str]:
    """Return a setting's row of a stream, of which a part of each task goes over into the next."""
    average = fmean(run.metrics["average"] for run in runs[label])
    cells = [name, label, f"{average:.3f}", closed(runs, label)]
    if label not in DRIFT:
        return [*cells, "", "", ""]
    found = []
    for run in runs[label]:
        changes, boundaries, steps = read(run, folder)
        early = round(fade * (boundaries[-1] - boundaries[-2]))
        found.append(noticed(changes, boundaries, steps, early))
    delays = [delay for own, _, _ in found for delay in own]
    late = f"{fmean(delays):.0f} ({max(delays)})" if delays else "–"
    missed, total = sum(each[1] for each in found), sum(each[1] + len(each[0]) for each in found)
    return [*cells, late, f"{missed} of {total}", str(sum(each[2] for each in found))]


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {label: [run for run in runs if run.label == label] for label in [*BESIDE, *DRIFT]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hidden_boundaries")
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas (0,1,2)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (2)")
    parser.add_argument("--out", type=Path, default=Path("runs/hidden_boundaries"))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows, alone = [], []
    for recipe in RECIPES:
        for kind in ("abrupt", "gradual") if recipe in GRADUAL else ("abrupt",):
            folder = given.out / f"{recipe}_{kind}"
            of_kind = ["--data", "benchmarks.support.gradual.GradualDigits"]
            stream = of_kind if kind == "gradual" else []
            arguments = [*stream, *WATCH]
            path = f"recipes/{recipe}.yaml"
            every = kind == "abrupt" and recipe in ALL_DETECTORS
            variants = {**BESIDE, **dict(list(DRIFT.items())[: None if every else 1])}
            runs = by_label(compared(path, folder, variants, seeds, given.jobs, arguments))
            fade = FADE if kind == "gradual" else 0.0
            rows += [row(f"{recipe}, {kind}", label, runs, folder, fade) for label in variants]
    folder = given.out / f"{ALONE}_stationary"
    path = f"recipes/{ALONE}.yaml"
    default = dict(list(DRIFT.items())[:1])
    runs = by_label(compared(path, folder, default, seeds, given.jobs, [*ONE_TASK, *WATCH]))
    for label in default:
        found = [read(run, folder) for run in runs[label]]
        steps = sum(each[2] for each in found)
        alone.append([ALONE, label, f"{steps:,}", str(sum(len(each[0]) for each in found))])
    write_page(
        "hidden_boundaries",
        "# Boundaries that nobody announces\n\n"
        "Average score on all tasks after the last one, and the share of the gap between "
        "fine-tuning and joint training that is closed, in percent (mean ± 95 % interval over the "
        f"seeds {given.seeds}); RECALL with its defaults for a model from random weights. Gradual: "
        "the next task comes in over the last tenth of a task and the first of the next. Changes "
        "by the steps that they were noticed late (mean, and the largest), how many were not "
        "noticed before the next, and how many were none.",
        machine(),
        table(
            ["stream", "boundaries", "average", "gap closed", "late", "missed", "false alarms"],
            rows,
        ),
        "One task alone, in which every alarm is a false one:\n\n"
        + table(["stream", "detector", "steps", "false alarms"], alone),
    )


if __name__ == "__main__":
    main()
