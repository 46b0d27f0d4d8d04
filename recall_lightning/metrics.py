"""Continual-learning metrics of a task matrix.

The task matrix holds every score of a run over a sequence of tasks: ``matrix[i, j]`` is the score
on task ``j`` after training on task ``i``, both counted from 0. The scores of the model before any
training are no row of it; :func:`forward_transfer` takes them as ``baseline``.

The module has two layers. Pure functions compute a number from a finished, or half finished,
matrix. The :class:`torchmetrics.Metric` classes of the same names collect the matrix row by row
while a model trains, and call those functions.

What all functions share:

* **Shape.** ``matrix`` is anything that :func:`torch.as_tensor` takes, of shape (N, T): the rows of
  the N ≤ T tasks trained so far, over all T tasks. Every metric is over those first N tasks and
  ignores the columns after them.
* **Missing scores.** NaN stands for a score that was not measured, such as that of a task which
  did not exist yet. It may stand wherever the formula does not read; where it does, that is an
  error rather than a silent NaN.
* **Direction.** ``higher_is_better=False`` is for losses and perplexities. Transfer is positive for
  an improvement, and forgetting and intransigence are positive for a loss of quality, in both
  directions. :func:`average` and :func:`plasticity` stay in the unit of the score, so for them the
  direction changes nothing; they take it so that all metrics can be called alike.
* **Result.** A float64 tensor without dimensions, on the CPU, in the unit of the score. What is a
  mean over pairs of tasks is undefined for a single task, and is NaN there.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "Average",
    "BackwardTransfer",
    "Forgetting",
    "ForgettingVariant",
    "ForwardTransfer",
    "Intransigence",
    "Plasticity",
    "TaskMatrixMetric",
    "average",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "gap_closed",
    "intransigence",
    "plasticity",
]

Scores = Tensor | Sequence[Any]
"""Scores as a tensor, an array, or nested sequences of numbers."""

ForgettingVariant = Literal["since_trained", "any_time", "first_minus_last"]
"""What the last score on a task is compared with; see :func:`forgetting`."""


def average(matrix: Scores, *, after: int | None = None, higher_is_better: bool = True) -> Tensor:
    """Average score on the tasks seen so far, "ACC".

    ``mean_{j <= i} R[i, j]`` with i the last row, after Lopez-Paz & Ranzato, "Gradient Episodic
    Memory for Continual Learning", NeurIPS 2017.

    Args:
        matrix: Task matrix, (N, T).
        after: Row i to average, 0 to N - 1. None for the last one.
        higher_is_better: Direction of the scores; the average is the same for both.

    Returns:
        The average in the unit of the score, without dimensions.

    Raises:
        ValueError: If ``matrix`` has a wrong shape or NaN in the entries read, or has no row
            ``after``.

    Example:
        >>> average([[0.9, 0.1], [0.5, 0.8]]).item()
        0.65
        >>> average([[0.9, 0.1], [0.5, 0.8]], after=0).item()
        0.9
    """
    scores = _task_matrix(matrix)
    row = len(scores) - 1 if after is None else after
    if not 0 <= row < len(scores):
        raise ValueError(
            f"`after` is {after}, but the matrix has rows 0 to {len(scores) - 1}: pass one of "
            "them, or None for the last."
        )
    return _read(scores, [row] * (row + 1), range(row + 1)).mean()


def backward_transfer(matrix: Scores, *, higher_is_better: bool = True) -> Tensor:
    """Backward transfer, "BWT": what later training did to earlier tasks.

    ``1 / (N - 1) * sum_{j < N} (R[N, j] - R[j, j])`` with tasks counted from 1, after Lopez-Paz &
    Ranzato, NeurIPS 2017. Negative when tasks were forgotten.

    Args:
        matrix: Task matrix, (N, T).
        higher_is_better: Direction of the scores.

    Returns:
        Mean improvement in the unit of the score, without dimensions. NaN for a single task.

    Raises:
        ValueError: If ``matrix`` has a wrong shape or NaN in the entries read.

    Example:
        >>> round(backward_transfer([[0.9, 0.1], [0.5, 0.8]]).item(), 6)
        -0.4
    """
    scores = _task_matrix(matrix)
    last = len(scores) - 1
    end = _read(scores, [last] * last, range(last))
    return _improvement(end, _read(scores, range(last), range(last)), higher_is_better)


def forward_transfer(matrix: Scores, baseline: Scores, *, higher_is_better: bool = True) -> Tensor:
    """Forward transfer, "FWT": what earlier training did for tasks not trained yet.

    ``1 / (N - 1) * sum_{j >= 2} (R[j - 1, j] - b[j])`` with tasks counted from 1, after Lopez-Paz &
    Ranzato, NeurIPS 2017. It reads the entries right above the diagonal, so every task must be
    scored once before its own training.

    Args:
        matrix: Task matrix, (N, T).
        baseline: Scores b of the model before any training, or of a randomly initialised one, (T,).
        higher_is_better: Direction of the scores.

    Returns:
        Mean improvement in the unit of the score, without dimensions. NaN for a single task.

    Raises:
        ValueError: If an argument has a wrong shape or NaN in the entries read.

    Example:
        >>> round(forward_transfer([[0.9, 0.3], [0.5, 0.8]], baseline=[0.5, 0.1]).item(), 6)
        0.2
    """
    scores = _task_matrix(matrix)
    later = range(1, len(scores))
    before = _read(scores, range(len(later)), later)
    start = _read_reference("baseline", baseline, scores, later)
    return _improvement(before, start, higher_is_better)


def forgetting(
    matrix: Scores,
    variant: ForgettingVariant = "since_trained",
    *,
    higher_is_better: bool = True,
) -> Tensor:
    """Forgetting: how far tasks fell from the best score that they once had.

    ``mean_{j < N} (best_j - R[N, j])`` with tasks counted from 1. Three definitions of the best
    score are in use; name the variant wherever a number is shown:

    * ``"since_trained"``: ``max_{j <= l < N} R[l, j]``, from the task's own training on, after
      Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018. The last row is not
      among those compared, so that a task which is still improving counts as negative forgetting.
    * ``"any_time"``: ``max_{l < N} R[l, j]``, also before the task was trained.
    * ``"first_minus_last"``: ``R[j, j]``, which is backward transfer with its sign turned.

    For scores where lower is better, the best is the minimum and the sign turns.

    Args:
        matrix: Task matrix, (N, T).
        variant: One of the definitions above.
        higher_is_better: Direction of the scores.

    Returns:
        Mean loss of quality in the unit of the score, without dimensions. NaN for a single task.

    Raises:
        ValueError: If ``variant`` is unknown, or ``matrix`` has a wrong shape or NaN in the
            entries read.

    Example:
        >>> matrix = [[0.9, 0.95, 0.1], [0.7, 0.8, 0.2], [0.6, 0.7, 0.9]]
        >>> round(forgetting(matrix).item(), 6)
        0.2
        >>> round(forgetting(matrix, "any_time").item(), 6)
        0.275
    """
    _check_variant(variant)
    scores = _task_matrix(matrix)
    last = len(scores) - 1
    rows = {
        "since_trained": lambda task: range(task, last),
        "any_time": lambda task: range(last),
        "first_minus_last": lambda task: range(task, task + 1),
    }[variant]
    best_of = torch.amax if higher_is_better else torch.amin
    best = [
        best_of(_read(scores, rows(task), [task] * len(rows(task)))).item() for task in range(last)
    ]
    end = _read(scores, [last] * last, range(last))
    return _improvement(scores.new_tensor(best), end, higher_is_better)


def plasticity(matrix: Scores, *, higher_is_better: bool = True) -> Tensor:
    """Plasticity: the average score on each task right after its own training.

    ``mean_j R[j, j]``, also known as learning accuracy (Riemer et al., "Learning to Learn without
    Forgetting by Maximizing Transfer and Minimizing Interference", ICLR 2019).

    Args:
        matrix: Task matrix, (N, T).
        higher_is_better: Direction of the scores; plasticity is the same for both.

    Returns:
        The average in the unit of the score, without dimensions.

    Raises:
        ValueError: If ``matrix`` has a wrong shape or NaN on its diagonal.

    Example:
        >>> round(plasticity([[0.9, 0.1], [0.5, 0.8]]).item(), 6)
        0.85
    """
    scores = _task_matrix(matrix)
    return _read(scores, range(len(scores)), range(len(scores))).mean()


def intransigence(matrix: Scores, joint: Scores, *, higher_is_better: bool = True) -> Tensor:
    """Intransigence: how far learning each task in turn stays behind learning them together.

    ``mean_j (a[j] - R[j, j])``, after Chaudhry et al., ECCV 2018. Negative when training in
    sequence did better.

    Args:
        matrix: Task matrix, (N, T).
        joint: Scores a of a reference model trained on all tasks together, (T,).
        higher_is_better: Direction of the scores.

    Returns:
        Mean shortfall in the unit of the score, without dimensions.

    Raises:
        ValueError: If an argument has a wrong shape or NaN in the entries read.

    Example:
        >>> round(intransigence([[0.9, 0.1], [0.5, 0.8]], joint=[0.92, 0.88]).item(), 6)
        0.05
    """
    scores = _task_matrix(matrix)
    tasks = range(len(scores))
    best = _read_reference("joint", joint, scores, tasks)
    return _improvement(best, _read(scores, tasks, tasks), higher_is_better)


def gap_closed(method: float, finetune: float, joint: float) -> float:
    """Share of the gap between plain fine-tuning and joint training that a method closes.

    ``100 * (method - finetune) / (joint - finetune)``: 0 is as good as fine-tuning, 100 as good as
    joint training; both can be passed. The formula takes no direction, because turning the sign of
    all three scores cancels.

    Args:
        method: Average score of the method.
        finetune: Average score of training on one task after the other and doing nothing else.
        joint: Average score of training on all tasks together.

    Returns:
        The share in percent.

    Raises:
        ValueError: If a score is NaN or infinite, or there is no gap.

    Example:
        >>> gap_closed(method=0.75, finetune=0.5, joint=1.0)
        50.0
        >>> gap_closed(method=2.5, finetune=3.0, joint=2.0)  # losses
        50.0
    """
    for name, score in (("method", method), ("finetune", finetune), ("joint", joint)):
        if not math.isfinite(score):
            raise ValueError(
                f"`{name}` is {score}: pass the average score of a run that converged."
            )
    if joint == finetune:
        raise ValueError(
            f"`joint` and `finetune` are both {joint}, so there is no gap to close: "
            "compare the scores themselves."
        )
    return 100 * float((method - finetune) / (joint - finetune))


class TaskMatrixMetric(Metric):
    """Base of the metrics that collect a task matrix row by row.

    ``update(task, scores)`` sets the row of a task, overwriting what was there; ``compute()`` is
    the value over the rows set so far, which must be those of the first tasks without a gap.
    A call of the metric does both. A subclass defines ``_value(matrix)``.

    Note:
        The matrix has to outlive every epoch, so log ``metric.compute()`` rather than the metric
        object, which Lightning would reset. For the same reason the matrix is part of the
        ``state_dict``, so that a resumed run still has it.

    Note:
        Under data parallelism every process is expected to hold the same scores, reduced over
        processes before ``update``. Synchronising keeps them as they are; a score that only some
        processes hold is given to all.

    Args:
        num_tasks: Number T of tasks.
        higher_is_better: Direction of the scores. The attribute ``metric.higher_is_better``, which
            torchmetrics reads, is the direction of the metric's own value: it is True for
            transfer, False for forgetting and intransigence, and this argument for the others.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_tasks`` is below 1.
    """

    is_differentiable = False
    full_state_update = True

    rows: Tensor
    _forward_cache: Any

    def __init__(self, num_tasks: int, higher_is_better: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_tasks < 1:
            raise ValueError(f"`num_tasks` is {num_tasks}: pass the number of tasks, at least 1.")
        self.num_tasks = num_tasks
        self.scores_higher_is_better = higher_is_better
        empty = torch.full((num_tasks, num_tasks), float("nan"))
        self.add_state("rows", empty, dist_reduce_fx=_merge_replicas, persistent=True)

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether a higher value of this metric is a better one."""
        return self.scores_higher_is_better

    def update(self, task: int, scores: Scores) -> None:
        """Set the scores measured after training a task.

        Args:
            task: Index of the task just trained, 0 to T - 1.
            scores: Scores on all tasks, (T,), NaN where none was measured. A row of NaN alone
                counts as not set.

        Raises:
            ValueError: If ``task`` is out of range or ``scores`` has a wrong shape.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(
                f"`task` is {task}, but this metric is over {self.num_tasks} tasks: "
                f"pass an index from 0 to {self.num_tasks - 1}."
            )
        row = torch.as_tensor(scores, dtype=self.rows.dtype, device=self.rows.device)
        if row.shape != (self.num_tasks,):
            raise ValueError(
                f"`scores` of task {task} has shape {tuple(row.shape)}: pass one score for each of "
                f"the {self.num_tasks} tasks, NaN where none was measured."
            )
        # A new tensor, as one made under `inference_mode` could not be written to outside it.
        rows = self.rows.clone()
        rows[task] = row
        self.rows = rows

    def compute(self) -> Tensor:
        """Compute the metric over the tasks trained so far.

        Returns:
            The value of the pure function of the same name, in the metric's dtype and on its
            device.

        Raises:
            ValueError: If no row is set, or one before the last is missing, or the formula reads a
                score that is NaN.
        """
        filled = ~self.rows.isnan().all(dim=1)
        count = int(filled.sum())
        if count == 0 or not filled[:count].all():
            raise ValueError(
                f"The rows of tasks {filled.nonzero().flatten().tolist()} are set, but they must "
                "be those of the first tasks without a gap, starting at 0: call `update` for each "
                "task in turn."
            )
        return self._value(self.rows[:count]).to(self.rows)

    def forward(self, task: int, scores: Scores) -> Tensor:
        """Set the scores of a task and compute the metric over all tasks trained so far."""
        self.update(task, scores)
        self._forward_cache = self.compute()
        return self._forward_cache

    def _value(self, matrix: Tensor) -> Tensor:
        """The metric of the rows set so far, (N, T)."""
        raise NotImplementedError


class Average(TaskMatrixMetric):
    """Average score on the tasks seen so far; see :func:`average`.

    Example:
        >>> metric = Average(num_tasks=2)
        >>> metric.update(0, [0.75, 0.25])
        >>> metric.compute()
        tensor(0.7500)
        >>> metric(1, [0.50, 1.00])
        tensor(0.7500)
    """

    def _value(self, matrix: Tensor) -> Tensor:
        return average(matrix, higher_is_better=self.scores_higher_is_better)


class BackwardTransfer(TaskMatrixMetric):
    """What later training did to earlier tasks; see :func:`backward_transfer`.

    Example:
        >>> metric = BackwardTransfer(num_tasks=2)
        >>> metric.update(0, [0.75, 0.25])
        >>> metric(1, [0.50, 1.00])
        tensor(-0.2500)
    """

    higher_is_better = True

    def _value(self, matrix: Tensor) -> Tensor:
        return backward_transfer(matrix, higher_is_better=self.scores_higher_is_better)


class ForwardTransfer(TaskMatrixMetric):
    """What earlier training did for tasks not trained yet; see :func:`forward_transfer`.

    Args:
        num_tasks: Number T of tasks.
        baseline: Scores of the model before any training, (T,).
        higher_is_better: Direction of the scores.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_tasks`` is below 1 or ``baseline`` has a wrong shape.

    Example:
        >>> metric = ForwardTransfer(num_tasks=2, baseline=[0.00, 0.125])
        >>> metric.update(0, [0.75, 0.25])
        >>> metric(1, [0.50, 1.00])
        tensor(0.1250)
    """

    higher_is_better = True

    def __init__(
        self, num_tasks: int, baseline: Scores, higher_is_better: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(num_tasks, higher_is_better, **kwargs)
        self.baseline = _reference("baseline", baseline, num_tasks)

    def _value(self, matrix: Tensor) -> Tensor:
        return forward_transfer(
            matrix, self.baseline, higher_is_better=self.scores_higher_is_better
        )


class Forgetting(TaskMatrixMetric):
    """How far tasks fell from the best score that they once had; see :func:`forgetting`.

    Args:
        num_tasks: Number T of tasks.
        variant: What the last score is compared with: "since_trained", "any_time" or
            "first_minus_last".
        higher_is_better: Direction of the scores.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_tasks`` is below 1 or ``variant`` is unknown.

    Example:
        >>> metric = Forgetting(num_tasks=2)
        >>> metric.update(0, [0.75, 0.25])
        >>> metric(1, [0.50, 1.00])
        tensor(0.2500)
    """

    higher_is_better = False

    def __init__(
        self,
        num_tasks: int,
        variant: ForgettingVariant = "since_trained",
        higher_is_better: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_tasks, higher_is_better, **kwargs)
        _check_variant(variant)
        self.variant = variant

    def _value(self, matrix: Tensor) -> Tensor:
        return forgetting(matrix, self.variant, higher_is_better=self.scores_higher_is_better)


class Plasticity(TaskMatrixMetric):
    """The average score on each task right after its own training; see :func:`plasticity`.

    Example:
        >>> metric = Plasticity(num_tasks=2)
        >>> metric.update(0, [0.75, 0.25])
        >>> metric(1, [0.50, 1.00])
        tensor(0.8750)
    """

    def _value(self, matrix: Tensor) -> Tensor:
        return plasticity(matrix, higher_is_better=self.scores_higher_is_better)


class Intransigence(TaskMatrixMetric):
    """How far learning in turn stays behind learning together; see :func:`intransigence`.

    Args:
        num_tasks: Number T of tasks.
        joint: Scores of a reference model trained on all tasks together, (T,).
        higher_is_better: Direction of the scores.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``num_tasks`` is below 1 or ``joint`` has a wrong shape.

    Example:
        >>> metric = Intransigence(num_tasks=2, joint=[1.00, 1.00])
        >>> metric.update(0, [0.75, 0.25])
        >>> metric(1, [0.50, 1.00])
        tensor(0.1250)
    """

    higher_is_better = False

    def __init__(
        self, num_tasks: int, joint: Scores, higher_is_better: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(num_tasks, higher_is_better, **kwargs)
        self.joint = _reference("joint", joint, num_tasks)

    def _value(self, matrix: Tensor) -> Tensor:
        return intransigence(matrix, self.joint, higher_is_better=self.scores_higher_is_better)


def _improvement(scores: Tensor, over: Tensor, higher_is_better: bool) -> Tensor:
    """How much better some scores are than others on average; NaN for none."""
    return (scores - over if higher_is_better else over - scores).mean()


def _float64(scores: Scores) -> Tensor:
    return torch.as_tensor(scores, dtype=torch.float64, device="cpu")


def _task_matrix(scores: Scores) -> Tensor:
    """A task matrix in float64, with a checked shape."""
    matrix = _float64(scores)
    if matrix.ndim != 2 or not 1 <= matrix.shape[0] <= matrix.shape[1]:
        raise ValueError(
            f"`matrix` has shape {tuple(matrix.shape)}: pass one row for each task trained so far, "
            "at least one, and one column for each task."
        )
    return matrix


def _read(matrix: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """The entries at pairs of row and column; all that a formula reads goes through here."""
    values = matrix[list(rows), list(columns)]
    if (missing := values.isnan()).any():
        first = int(missing.nonzero()[0])
        row, column = rows[first], columns[first]
        raise ValueError(
            f"`matrix[{row}, {column}]` is NaN, but this metric reads the score on task {column} "
            f"after training task {row}: measure it, or use a metric that does not need it."
        )
    return values


def _reference(name: str, scores: Scores, num_tasks: int) -> Tensor:
    reference = _float64(scores)
    if reference.shape != (num_tasks,):
        raise ValueError(
            f"`{name}` has shape {tuple(reference.shape)}: pass one score for each of the "
            f"{num_tasks} tasks."
        )
    return reference


def _read_reference(name: str, scores: Scores, matrix: Tensor, tasks: Sequence[int]) -> Tensor:
    """The scores of a reference model on some tasks of a matrix."""
    values = _reference(name, scores, matrix.shape[1])[list(tasks)]
    if (missing := values.isnan()).any():
        task = tasks[int(missing.nonzero()[0])]
        raise ValueError(
            f"`{name}[{task}]` is NaN, but this metric reads it: measure the score on task {task}."
        )
    return values


def _check_variant(variant: str) -> None:
    if variant not in get_args(ForgettingVariant):
        known = ", ".join(repr(name) for name in get_args(ForgettingVariant))
        raise ValueError(f"`variant` of forgetting is {variant!r}: pass one of {known}.")


def _merge_replicas(stacked: Tensor) -> Tensor:
    """Reduce equal copies, (processes, T, T), to one; exact, and NaN only where all are NaN."""
    merged = stacked[0]
    for copy in stacked[1:]:
        merged = torch.fmax(merged, copy)
    return merged
