"""Where what a ForgettingMonitor has measured goes: loggers, the terminal, and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import (
    Point,
    keep_file,
    log_curves,
    log_figure,
    log_scalars,
    log_summary,
    log_table,
)
from recall_lightning.callbacks.task_aware import task_aware_callbacks
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.metrics.task_matrix_file import write_task_matrix

_AXIS = "continual/task"
_FILES = ("config.yaml", "task_matrix.json", "task_matrix.png", "curves.png")


class TaskReport:
    """Logs, prints and writes what a record holds.

    Args:
        record: What was measured.
    """

    def __init__(self, record: TaskRecord) -> None:
        self._record = record
        self._files: tuple[Path, dict[str, list[int]]] | None = None  # of the last fit, with marks

    def after_task(
        self, trainer: Trainer, name: str, folder: Path | None, exceeded: Sequence[dict[str, Any]]
    ) -> None:
        """Log, print and write the last row, and what follows from all.

        Args:
            trainer: The Trainer, all of whose processes call this.
            name: That of the visit to the task.
            folder: Where files go, if anywhere.
            exceeded: The limits that were not kept.
        """
        record = self._record
        names, summary, shown = record.task_names, record.summary(), record.rows("before")
        columns = [*names, *record.probe_names]
        row = [*record.matrix[-1], *record.probes[-1]]
        best = "last,max" if record.higher_is_better else "last,min"
        point = Point(_AXIS, float(len(record.matrix)))
        scalars = {f"continual/{name}": value for name, value in summary.items()}
        scalars |= {f"continual/{name}": v for name, v in zip(columns, row, strict=True)}
        for callback in task_aware_callbacks(trainer):
            scalars |= {f"continual/{name}": value for name, value in callback.estimates.items()}
        log_scalars(trainer, scalars, point, {f"continual/{name}": best for name in columns})
        if not trainer.is_global_zero:
            return
        rows = [[label, *scores] for label, scores in shown.items()]
        log_table(trainer, "continual/matrix", ["when", *columns], rows, point)
        log_figure(trainer, "continual/matrix_image", record.matrix_figure, point)
        first = len(record.matrix) + 1 - len(shown)  # 0 with the untrained model's row
        scores = {
            name: [own[column] if column < len(own) else math.nan for own in shown.values()]
            for column, name in enumerate(columns)
        }
        tasks = range(first, first + len(shown))
        log_curves(trainer, "continual/scores_by_task", tasks, scores, "tasks trained", point)
        if folder is not None:
            with _failure_is_said(folder):
                write_task_matrix(record, folder, exceeded)
        values = "  ".join(f"{name} {value:.3f}" for name, value in summary.items())
        trainer.print(f"after {name!r}: {values}")

    def after_fit(
        self, trainer: Trainer, folder: Path | None, exceeded: Sequence[dict[str, Any]]
    ) -> None:
        """Print the matrix, log the metrics once more as the run's summary, and write all files."""
        if not trainer.is_global_zero:
            return
        trainer.print(self._record.table())
        summary = self._record.summary()
        log_summary(trainer, {f"continual/{name}": value for name, value in summary.items()})
        if folder is None:
            return
        marks: dict[str, list[int]] = {}
        for callback in task_aware_callbacks(trainer):
            marks |= callback.marked_steps
        self._files = folder, marks
        with _failure_is_said(folder):
            self._write_files(folder, marks, exceeded)
            for name in _FILES:
                keep_file(trainer, folder / name)

    def again(self, exceeded: Sequence[dict[str, Any]]) -> None:
        """Write the last fit's files again, as the record has changed since."""
        if self._files is not None:
            folder, marks = self._files
            with _failure_is_said(folder):
                self._write_files(folder, marks, exceeded)

    def _write_files(
        self,
        folder: Path,
        marks: Mapping[str, Sequence[int]],
        exceeded: Sequence[dict[str, Any]],
    ) -> None:
        from recall_lightning.metrics.figures import save

        write_task_matrix(self._record, folder, exceeded)
        save(self._record.matrix_figure(), folder / "task_matrix.png")
        save(self._record.curves_figure(marks), folder / "curves.png")


@contextmanager
def _failure_is_said(folder: Path) -> Iterator[None]:
    """Have training go on where files about it can't be written."""
    try:
        yield
    except OSError as error:
        rank_zero_warn(
            f"ForgettingMonitor: {folder} could not be written to ({error.strerror or error}); the "
            "task matrix is in the callback's record and in checkpoints"
        )
