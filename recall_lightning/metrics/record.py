"""What was measured of a model over a sequence of tasks, and how it is shown."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from recall_lightning import metrics
from recall_lightning.checks import FormError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORGETTING_VARIANT: metrics.ForgettingVariant = "since_trained"


class Measurement(TypedDict):
    """The scores of a validation."""

    step: int
    scores: list[float]
    probes: NotRequired[list[float]]


class FoundBoundary(TypedDict):
    """A task's end that nobody announced, and that was found.

    Attributes:
        visit: The number of the visit that it ended.
        step: The optimizer step at which it was noticed.
        began: The step with which the task ended.
        signal: What told it: ``"loss"`` or ``"representations"``.
    """

    visit: int
    step: int
    began: int
    signal: str


class RecordState(TypedDict):
    """What a checkpoint holds of a record; an older one has no probes, and no task twice."""

    score_name: str
    higher_is_better: bool
    task_names: list[str]
    trained: NotRequired[list[int]]
    matrix: list[list[float]]
    before: list[float] | None
    probe_names: NotRequired[list[str]]
    probes: NotRequired[list[list[float]]]
    probes_before: NotRequired[list[float] | None]
    measurements: list[Measurement]
    boundaries: list[Any]
    seconds: float
    rolled_back: NotRequired[list[int]]
    found_boundaries: NotRequired[list[FoundBoundary] | None]
    retuned: NotRequired[list[int]]
    measured_early: NotRequired[list[int]]


@dataclass
class TaskRecord:
    """Scores of every task over training.

    Attributes:
        score_name: What the scores are, such as ``"val/acc"``.
        higher_is_better: Their direction.
        task_names: The tasks that are scored, in order.
        matrix: A row a finished task, each with a score a task; NaN where none was measured. A task
            that is trained again adds another row.
        before: The untrained model's row, or None.
        probe_names: Held-out sets of no task, which stand for what the model could do before any.
        probes: A row a finished task, each with a score a probe. No metric of tasks counts them.
        probes_before: The untrained model's scores of the probes, or None.
        measurements: A dict a validation: ``step`` (optimizer steps so far), ``scores`` of the
            tasks and ``probes``.
        boundaries: The step at which each task started, and its name.
        seconds: Wall time of training, validation included.
        trained: The task of each row, counted from 0; by default row i is of task i.
        rolled_back: The rows of tasks after which earlier weights were put back; a row has the
            scores of those.
        found_boundaries: Where nobody announces the tasks' ends and a callback looks for them: what
            it found, as ``RecallCallback.changes`` has it. None where none looks.
        retuned: The rows that were measured before the last merge of their task was made again.
        measured_early: The rows that were measured before their task's end, after which nothing was
            validated.

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
    probe_names: list[str] = field(default_factory=list)
    probes: list[list[float]] = field(default_factory=list)
    probes_before: list[float] | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)
    boundaries: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    trained: list[int] = field(default_factory=list)
    rolled_back: list[int] = field(default_factory=list)
    found_boundaries: list[FoundBoundary] | None = None
    retuned: list[int] = field(default_factory=list)
    measured_early: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trained = self.trained or list(range(len(self.matrix)))

    def summary(self) -> dict[str, float]:
        """Return the metrics after the last finished task, by name, as far as they are defined.

        They are those of :mod:`recall_lightning.metrics.functional`; and of each probe
        ``<name>_lost``, by how much its score is worse than before any training.
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
                direction = {"higher_is_better": self.higher_is_better}
                values[name] = float(function(matrix, trained=self.trained, **direction))
        lost = self.lost() if self.probe_names else {}
        values |= {f"{name}_lost": lost[name] for name in self.probe_names if name in lost}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def lost(self) -> dict[str, float]:
        """Return by how much worse each score is now than it was, by the task's or probe's name.

        That is since a task's own training at its best, as in ``forgetting``, and of a probe since
        before any training. What was not measured before is left out; where it was and is NaN now,
        all is lost, and the value infinite.

        Example:
            >>> record = TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]])
            >>> record.lost()
            {'a': 0.4, 'b': 0.0}
        """
        sign = 1 if self.higher_is_better else -1
        found = {}
        for task in dict.fromkeys(self.trained):
            first = self.trained.index(task)
            scores = [sign * row[task] for row in self.matrix[first:] if task < len(row)]
            if scores and task < len(self.task_names):
                own = scores[:-1] or ([scores[0]] if math.isfinite(scores[0]) else [])
                found[self.task_names[task]] = _lost(own, scores[-1])
        if self.probes_before is not None and self.probes:
            pairs = zip(self.probe_names, self.probes_before, self.probes[-1], strict=True)
            for name, old, new in pairs:
                if math.isfinite(old):
                    found[name] = sign * (old - new) if math.isfinite(new) else math.inf
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def roll_back(self, step: int) -> None:
        """Give the last row the scores of the one before it, whose weights were put back.

        Args:
            step: At which optimizer step that was.
        """
        row = len(self.matrix) - 1
        earlier = self.matrix[row - 1] if row else self.before
        probes = self.probes[row - 1] if row else self.probes_before
        self.matrix[row] = _of_length(len(self.matrix[row]), earlier)
        self.probes[row] = _of_length(len(self.probes[row]), probes)
        self.rolled_back.append(row)
        for outdated in (self.retuned, self.measured_early):
            if row - 1 in outdated:  # whose weights are not those of its scores
                outdated.append(row)
        self.measured(step, [*self.matrix[row], *self.probes[row]])

    def name(self, tasks: Sequence[str], probes: Sequence[str] = ()) -> None:
        """Say of which tasks and probes the scores are; there may be more tasks than before.

        Raises:
            ValueError: If scores that were measured are of others.
        """
        trained = bool(self.matrix or any(each["step"] for each in self.measurements))
        for what, then, now, whole in (
            ("tasks", self.task_names, tasks, False),
            ("probes", self.probe_names, probes, True),
        ):
            same = list(now) == then if whole else list(now[: len(then)]) == then
            if not same and not trained:  # an untrained model's row of other tasks
                self.before, self.probes_before, self.measurements = None, None, []
            elif not same:
                raise ValueError(
                    f"the {what} are {', '.join(now) or 'none'}, and the scores measured so far "
                    f"are of {', '.join(then) or 'none'}: go on with those, in their order"
                )
        self.task_names, self.probe_names = list(tasks), list(probes)

    def measured(self, step: int, scores: Sequence[float]) -> dict[str, Any]:
        """Add the scores of a validation, those of the probes behind those of the tasks."""
        tasks = len(self.task_names)
        found: dict[str, Any] = {"step": step, "scores": list(scores[:tasks])}
        if self.probe_names:
            found["probes"] = list(scores[tasks:])
        self.measurements.append(found)
        return found

    def start_with(self, scores: Sequence[float]) -> None:
        """Take the untrained model's scores."""
        self.measurements = []
        found = self.measured(0, scores)
        self.before, self.probes_before = found["scores"], found.get("probes")

    def finish(self, measured: Mapping[str, Any], task: int, early: bool = False) -> None:
        """Take a measurement for the next row, which is of a task, if from before its end."""
        self.measured_early += [len(self.matrix)] if early else []
        self.matrix.append(measured["scores"])
        self.trained.append(task)
        self.probes.append(measured.get("probes", []))

    @property
    def last_is_retuned(self) -> bool:
        """Whether the last row is of before the last merge was made again."""
        return len(self.matrix) - 1 in self.retuned

    @property
    def last_is_early(self) -> bool:
        """Whether the last row is of before its task's end."""
        return len(self.matrix) - 1 in self.measured_early

    def measure_again(self, step: int, scores: Sequence[float]) -> None:
        """Take scores for the last row, which was of before its weights.

        Example:
            >>> record = TaskRecord("val/acc", True, ["a"], [[0.9]], probes=[[]], retuned=[0])
            >>> record.measure_again(10, [0.8])
            >>> record.matrix, record.last_is_retuned
            ([[0.8]], False)
        """
        row, measured = len(self.matrix) - 1, self.measured(step, scores)
        self.matrix[row], self.probes[row] = measured["scores"], measured.get("probes", [])
        self.retuned = [each for each in self.retuned if each != row]
        self.measured_early = [each for each in self.measured_early if each != row]

    def retune(self, step: int) -> bool:
        """Note that a merge was made again, if the last row was measured after it.

        Args:
            step: The optimizer step of the merge.

        Returns:
            Whether that is new.
        """
        measured = self.measurements[-1:]
        is_of_last_task = len(self.matrix) == len(self.boundaries)
        outdated = is_of_last_task and measured and measured[0]["step"] >= step
        if not outdated or self.last_is_retuned:
            return False
        self.retuned.append(len(self.matrix) - 1)
        return True

    def find(self, boundaries: Sequence[FoundBoundary]) -> None:
        """Take the boundaries that a callback has found so far; those of earlier fits stay."""
        known = {each["step"]: each for each in [*(self.found_boundaries or []), *boundaries]}
        self.found_boundaries = [known[step] for step in sorted(known)]

    def restart_from(self, row: int) -> None:
        """Forget a row and later ones: its task starts, perhaps after an interruption."""
        if self.found_boundaries and row < len(self.boundaries):
            start = self.boundaries[row][0]
            self.found_boundaries = [e for e in self.found_boundaries if e["step"] <= start]
        del self.matrix[row:], self.trained[row:], self.probes[row:], self.boundaries[row:]
        self.rolled_back = [each for each in self.rolled_back if each < row]
        self.retuned = [each for each in self.retuned if each < row]
        self.measured_early = [each for each in self.measured_early if each < row]
        if row == 0:
            self.measurements = []
            if self.before is not None:
                self.measured(0, [*self.before, *(self.probes_before or [])])
            self.seconds = 0.0

    def last_measured_of(self, row: int) -> dict[str, Any] | None:
        """Return what was last measured since a row's task started, if that is the newest."""
        if len(self.boundaries) != row + 1 or not self.measurements:
            return None
        last = self.measurements[-1]
        return last if last["step"] > self.boundaries[row][0] else None

    def table(self) -> str:
        """Return the task matrix as text: a row a trained task, a column a task, then probes."""
        rows, names = self.rows("before"), self._columns
        first = max(map(len, [self.score_name, *rows]))
        widths = [max(6, len(name) + 1) for name in names]
        lines = [[f"{n:>{w}}" for n, w in zip(names, widths, strict=True)]]
        lines += [[f"{v:>{w}.3f}" for v, w in zip(r, widths, strict=False)] for r in rows.values()]
        labels = [self.score_name, *rows]
        return "\n".join(
            " ".join([f"{label:<{first}}", *cells])
            for label, cells in zip(labels, lines, strict=True)
        )

    def matrix_figure(self) -> "Figure":
        """Draw the task matrix as a heatmap."""
        from recall_lightning.metrics.figures import task_matrix_figure

        rows = self.rows("before training")
        return task_matrix_figure(
            _padded(list(rows.values())),
            self._columns,
            self.score_name,
            self.higher_is_better,
            list(rows),
        )

    def curves_figure(self, marks: Mapping[str, Sequence[int]]) -> "Figure":
        """Draw each task's score over training, with marks at the steps given by label.

        Where boundaries were found, they are marked too.
        """
        from recall_lightning.metrics.figures import curves_figure

        steps = [measured["step"] for measured in self.measurements]
        scores = [[*each["scores"], *each.get("probes", [])] for each in self.measurements]
        found = [each["began"] for each in self.found_boundaries or []]
        return curves_figure(
            steps, _padded(scores), self._columns, self.score_name, self.boundaries, marks, found
        )

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "TaskRecord":
        """Return the record of which a checkpoint holds the state.

        Raises:
            ValueError: If its rows are not of its tasks.
        """
        record = cls(state["score_name"], state["higher_is_better"])
        record.load_state_dict(state)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain Python."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, but for the score's direction.

        Raises:
            ValueError: If it is of another score, or its rows are not of its tasks.
        """
        if state_dict["score_name"] != self.score_name:
            raise ValueError(
                f"monitor={self.score_name!r}, and the scores in the checkpoint are of "
                f"{state_dict['score_name']!r}: resume with that"
            )
        check_scores(state_dict)
        for name, value in state_dict.items():
            if name not in ("score_name", "higher_is_better"):
                setattr(self, name, list(value) if isinstance(value, list) else value)
        self.rolled_back = list(state_dict.get("rolled_back", []))  # older ones have none of these
        self.found_boundaries = state_dict.get("found_boundaries")
        self.retuned = list(state_dict.get("retuned", []))
        self.measured_early = list(state_dict.get("measured_early", []))
        if "trained" not in state_dict:  # of a time when a task was trained once
            self.trained = list(range(len(self.matrix)))

    def rows(self, first: str) -> dict[str, list[float]]:
        """Return the rows that are shown by their labels, the probes' scores behind the tasks'.

        Args:
            first: The label of the untrained model's row.
        """
        probes = self.probes or [[]] * len(self.matrix)
        shown = {}
        if self.before is not None:
            shown[first] = [*self.before, *(self.probes_before or [])]
        for row, (scores, others) in enumerate(zip(self.matrix, probes, strict=False)):
            remark = ", rolled back" if row in self.rolled_back else ""
            remark += ", measured before its end" if row in self.measured_early else ""
            remark += ", before retuning" if row in self.retuned else ""
            shown[f"after {self.visit_name(row)}{remark}"] = [*scores, *others]
        return shown

    def visit_name(self, row: int) -> str:
        """Return the name of a row's task, with the number of its visit from the second on."""
        task = self.trained[row]
        times = self.trained[: row + 1].count(task)
        return self.task_names[task] if times == 1 else f"{self.task_names[task]} ({times})"

    @property
    def _columns(self) -> list[str]:
        return [*self.task_names, *self.probe_names]


def _lost(earlier: Sequence[float], now: float) -> float:
    """Return by how much a score is below the best of earlier ones; NaN without such."""
    known = [score for score in earlier if math.isfinite(score)]
    if not earlier or (not known and math.isfinite(now)):
        return math.nan
    return max([*known, now]) - now if math.isfinite(now) else math.inf


def check_scores(state: Mapping[str, Any]) -> None:
    """Check that what a record is to hold has scores of its tasks, and boundaries.

    Raises:
        FormError: Naming the entry that is not of that form.
    """
    rows = {f"matrix.{row}": scores for row, scores in enumerate(state["matrix"])}
    for number, measured in enumerate(state["measurements"]):
        rows[f"measurements.{number}.scores"] = measured["scores"]
    for entry, scores in rows.items():
        if not 0 < len(scores) <= max(1, len(state["task_names"])):
            raise FormError(
                f"record.{entry} has {len(scores)} scores of {len(state['task_names'])} tasks"
            )
    for number, boundary in enumerate(state["boundaries"]):
        if not isinstance(boundary, (list, tuple)) or len(boundary) != 2:
            raise FormError(f"record.boundaries.{number} is no step and a name")


def _of_length(length: int, row: Sequence[float] | None) -> list[float]:
    """Return a row with NaN for what it does not have."""
    return [*(row or []), *[math.nan] * (length - len(row or []))]


def _padded(rows: Sequence[list[float]]) -> Tensor:
    """Stack rows of scores, (rows, tasks) float64; NaN where a task was not scored yet."""
    width = max(len(row) for row in rows)
    return torch.tensor([_of_length(width, row) for row in rows], dtype=torch.float64)
