"""Metrics that collect a task matrix row by row while a model trains."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from recall_lightning.metrics.functional import (
    ForgettingVariant,
    Scores,
    average,
    backward_transfer,
    check_reference,
    check_variant,
    forgetting,
    forward_transfer,
    intransigence,
    plasticity,
)


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

    @abstractmethod
    def _value(self, matrix: Tensor) -> Tensor:
        """The metric of the rows set so far, (N, T)."""


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
        self.baseline = check_reference("baseline", baseline, num_tasks)

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
        check_variant(variant)
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
        self.joint = check_reference("joint", joint, num_tasks)

    def _value(self, matrix: Tensor) -> Tensor:
        return intransigence(matrix, self.joint, higher_is_better=self.scores_higher_is_better)


def _merge_replicas(stacked: Tensor) -> Tensor:
    """Reduce equal copies, (processes, T, T), to one; exact, and NaN only where all are NaN."""
    merged = stacked[0]
    for copy in stacked[1:]:
        merged = torch.fmax(merged, copy)
    return merged
