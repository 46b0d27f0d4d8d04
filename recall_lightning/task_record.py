"""What was measured of a model over a sequence of tasks, and how it is shown."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recall_lightning import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORGETTING_VARIANT: metrics.ForgettingVariant = "since_trained"


@dataclass
class TaskRecord:
    """Scores of every task over training.

    Attributes:
        score_name: What the scores are, such as ``"val/acc"``.
        higher_is_better: Their direction.
        task_names: The tasks that are scored, in order.
        matrix: A row a finished task, each with a score a task; NaN where none was measured.
        before: The untrained model's row, or None.
        measurements: A dict a validation: ``step`` (optimizer steps so far) and ``scores``.
        boundaries: The step at which each task started, and its name.
        seconds: Wall time of training, validation included.

    Example:
        >>> record = TaskRecord("val/loss", False, ["a", "b"], [[1.0, 4.0], [1.5, 1.25]])
        >>> record.summary()["forgetting"], record.summary()["plasticity"]
        (0.5, 1.125)
        >>> print(record.table())
        val/loss      a      b
        after a   1.000  4.000
        after b   1.500  1.250
    """

    score_name: str
    higher_is_better: bool
    task_names: list[str] = field(default_factory=list)
    matrix: list[list[float]] = field(default_factory=list)
    before: list[float] | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)
    boundaries: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> dict[str, float]:
        """Return the metrics after the last finished task, by name, as far as they are defined.

        They are those of :mod:`recall_lightning.metrics.functional`.
        """
        if not self.matrix:
            return {}
        matrix = _padded(self.matrix)
        functions: dict[str, Callable[..., Tensor]] = {
            "average": metrics.average,
            "backward_transfer": metrics.backward_transfer,
            "forgetting": partial(metrics.forgetting, variant=FORGETTING_VARIANT),
            "plasticity": metrics.plasticity,
        }
        if self.before is not None:
            baseline = _padded([self.before, matrix[0].tolist()])[0]
            functions["forward_transfer"] = partial(metrics.forward_transfer, baseline=baseline)
        values = {}
        for name, function in functions.items():
            with suppress(ValueError):  # it reads a score that was not measured
                values[name] = float(function(matrix, higher_is_better=self.higher_is_better))
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def restart_from(self, task: int) -> None:
        """Forget what was measured of ``task`` and later ones: it starts, perhaps once more."""
        del self.matrix[task:], self.boundaries[task:]
        if task == 0:
            untrained = [{"step": 0, "scores": self.before}]
            self.measurements = [] if self.before is None else untrained
            self.seconds = 0.0

    def last_measured_of(self, task: int) -> list[float] | None:
        """Return the last scores measured since ``task`` started, if it is the newest task."""
        if len(self.boundaries) != task + 1 or not self.measurements:
            return None
        last = self.measurements[-1]
        return last["scores"] if last["step"] > self.boundaries[task][0] else None

    def table(self) -> str:
        """Return the task matrix as text: a row a trained task, a column a task."""
        rows = [("before", self.before)] if self.before else []
        rows += [(f"after {name}", row) for name, row in self._finished()]
        first = max(len(self.score_name), *(len(label) for label, _ in rows))
        widths = [max(6, len(name) + 1) for name in self.task_names]
        lines = [[f"{n:>{w}}" for n, w in zip(self.task_names, widths, strict=True)]]
        lines += [[f"{v:>{w}.3f}" for v, w in zip(row, widths, strict=False)] for _, row in rows]
        labels = [self.score_name, *(label for label, _ in rows)]
        return "\n".join(
            " ".join([f"{label:<{first}}", *cells])
            for label, cells in zip(labels, lines, strict=True)
        )

    def matrix_figure(self) -> "Figure":
        """Draw the task matrix as a heatmap."""
        from recall_lightning.figures import task_matrix_figure

        rows = [self.before, *self.matrix] if self.before is not None else self.matrix
        labels = ["before training"] if self.before is not None else []
        labels += [f"after {name}" for name, _ in self._finished()]
        scores = _padded(rows)
        return task_matrix_figure(
            scores, self.task_names, self.score_name, self.higher_is_better, labels
        )

    def curves_figure(self, marks: Mapping[str, Sequence[int]]) -> "Figure":
        """Draw each task's score over training, with marks at the steps given by label."""
        from recall_lightning.figures import curves_figure

        steps = [measured["step"] for measured in self.measurements]
        scores = _padded([measured["scores"] for measured in self.measurements])
        return curves_figure(
            steps, scores, self.task_names, self.score_name, self.boundaries, marks
        )

    def write(self, folder: Path) -> None:
        """Write ``task_matrix.json`` into a folder, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        content = {
            "monitor": self.score_name,
            "mode": "max" if self.higher_is_better else "min",
            "tasks": self.task_names,
            "before": _for_json(self.before),
            "matrix": [_for_json(row) for row in self.matrix],
            "metrics": self.summary(),
            "forgetting_variant": FORGETTING_VARIANT,
            "seconds": self.seconds,
            "measurements": [
                {"step": measured["step"], "scores": _for_json(measured["scores"])}
                for measured in self.measurements
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "task_matrix.json.partial"
        try:
            unfinished.write_text(json.dumps(content, indent=1))
            os.replace(unfinished, folder / "task_matrix.json")
        finally:
            unfinished.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain Python."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, but for the score's name and direction."""
        for name, value in state_dict.items():
            if name not in ("score_name", "higher_is_better"):
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def _finished(self) -> list[tuple[str, list[float]]]:
        return list(zip(self.task_names, self.matrix, strict=False))


def _for_json(scores: Sequence[float] | None) -> list[float | None] | None:
    """Replace NaN and infinities, which JSON does not know, by None."""
    return None if scores is None else [s if math.isfinite(s) else None for s in scores]


def _padded(rows: Sequence[list[float]]) -> Tensor:
    """Stack rows of scores, (rows, tasks) float64; NaN where a task was not scored yet."""
    width = max(len(row) for row in rows)
    return torch.tensor(
        [row + [math.nan] * (width - len(row)) for row in rows], dtype=torch.float64
    )
