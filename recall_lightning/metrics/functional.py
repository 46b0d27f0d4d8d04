"""Continual-learning metrics of a task matrix.

The task matrix holds every score of a run over a sequence of tasks: ``matrix[i, j]`` is the score
on task ``j`` after training on task ``i``, both counted from 0. The scores of the model before any
training are no row of it; :func:`forward_transfer` takes them as ``baseline``.

These pure functions compute a number from a finished, or half finished, matrix; the classes of the
same names in :mod:`recall_lightning.metrics.task_matrix` collect the matrix while a model trains.

What all functions share:

* **Shape.** ``matrix`` is anything that :func:`torch.as_tensor` takes, of shape (N, T): the rows of
  the N ≤ T tasks trained so far, over all T tasks. Every metric is over those first N tasks and
  ignores the columns after them.
* **Tasks that come back.** ``trained`` names the task of every row, as in ``[0, 1, 0, 1]``; by
  default row i is of task i, as the formulas have it. A metric is then over the tasks trained so
  far, plasticity and intransigence over their trainings: R[j, j] is the score on a task right after
  its last training, "trained" is its first, and the task of the last row is not an earlier one.
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

Scores = Tensor | Sequence[Any]
"""Scores as a tensor, an array, or nested sequences of numbers."""

ForgettingVariant = Literal["since_trained", "any_time", "first_minus_last"]
"""What the last score on a task is compared with; see :func:`forgetting`."""


def average(
    matrix: Scores,
    *,
    after: int | None = None,
    higher_is_better: bool = True,
    trained: Sequence[int] | None = None,
) -> Tensor:
    """Average score on the tasks seen so far, "ACC".

    ``mean_{j <= i} R[i, j]`` with i the last row, after Lopez-Paz & Ranzato, "Gradient Episodic
    Memory for Continual Learning", NeurIPS 2017.

    Args:
        matrix: Task matrix, (N, T).
        after: Row i to average, 0 to N - 1. None for the last one.
        higher_is_better: Direction of the scores; the average is the same for both.
        trained: The task of each row; see above.

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
    scores, order = _task_matrix(matrix, trained)
    row = len(scores) - 1 if after is None else after
    if not 0 <= row < len(scores):
        raise ValueError(
            f"`after` is {after}, but the matrix has rows 0 to {len(scores) - 1}: pass one of "
            "them, or None for the last."
        )
    tasks = _distinct(order[: row + 1])
    return _read(scores, [row] * len(tasks), tasks).mean()


def backward_transfer(
    matrix: Scores, *, higher_is_better: bool = True, trained: Sequence[int] | None = None
) -> Tensor:
    """Backward transfer, "BWT": what later training did to earlier tasks.

    ``1 / (N - 1) * sum_{j < N} (R[N, j] - R[j, j])`` with tasks counted from 1, after Lopez-Paz &
    Ranzato, NeurIPS 2017. Negative when tasks were forgotten.

    Args:
        matrix: Task matrix, (N, T).
        higher_is_better: Direction of the scores.
        trained: The task of each row; see above.

    Returns:
        Mean improvement in the unit of the score, without dimensions. NaN for a single task.

    Raises:
        ValueError: If ``matrix`` has a wrong shape or NaN in the entries read.

    Example:
        >>> round(backward_transfer([[0.9, 0.1], [0.5, 0.8]]).item(), 6)
        -0.4
        >>> again = [[0.9, 0.1], [0.5, 0.8], [0.8, 0.7]]
        >>> round(backward_transfer(again, trained=[0, 1, 0]).item(), 6)  # of task 1
        -0.1
    """
    scores, order = _task_matrix(matrix, trained)
    end, earlier = _read_end(scores, order)
    own = [len(order) - 1 - order[::-1].index(task) for task in earlier]
    return _improvement(end, _read(scores, own, earlier), higher_is_better)


def forward_transfer(
    matrix: Scores,
    baseline: Scores,
    *,
    higher_is_better: bool = True,
    trained: Sequence[int] | None = None,
) -> Tensor:
    """Forward transfer, "FWT": what earlier training did for tasks not trained yet.

    ``1 / (N - 1) * sum_{j >= 2} (R[j - 1, j] - b[j])`` with tasks counted from 1, after Lopez-Paz &
    Ranzato, NeurIPS 2017. It reads the entries right above the diagonal, so every task must be
    scored once before its own training.

    Args:
        matrix: Task matrix, (N, T).
        baseline: Scores b of the model before any training, or of a randomly initialised one, (T,).
        higher_is_better: Direction of the scores.
        trained: The task of each row; see above.

    Returns:
        Mean improvement in the unit of the score, without dimensions. NaN for a single task.

    Raises:
        ValueError: If an argument has a wrong shape or NaN in the entries read.

    Example:
        >>> round(forward_transfer([[0.9, 0.3], [0.5, 0.8]], baseline=[0.5, 0.1]).item(), 6)
        0.2
    """
    scores, order = _task_matrix(matrix, trained)
    later = [task for task in _distinct(order) if task != order[0]]
    before = _read(scores, [order.index(task) - 1 for task in later], later)
    start = _read_reference("baseline", baseline, scores, later)
    return _improvement(before, start, higher_is_better)


def forgetting(
    matrix: Scores,
    variant: ForgettingVariant = "since_trained",
    *,
    higher_is_better: bool = True,
    trained: Sequence[int] | None = None,
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
        trained: The task of each row; see above.

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
    check_variant(variant)
    if variant == "first_minus_last":
        return -backward_transfer(matrix, higher_is_better=higher_is_better, trained=trained)
    scores, order = _task_matrix(matrix, trained)
    end, earlier = _read_end(scores, order)
    best = []
    for task in earlier:
        rows = range(order.index(task) if variant == "since_trained" else 0, len(order) - 1)
        of_task = _read(scores, rows, [task] * len(rows))
        best.append((of_task.amax() if higher_is_better else of_task.amin()).item())
    return _improvement(scores.new_tensor(best), end, higher_is_better)


def plasticity(
    matrix: Scores, *, higher_is_better: bool = True, trained: Sequence[int] | None = None
) -> Tensor:
    """Plasticity: the average score on each task right after its own training.

    ``mean_j R[j, j]``, also known as learning accuracy (Riemer et al., "Learning to Learn without
    Forgetting by Maximizing Transfer and Minimizing Interference", ICLR 2019).

    Args:
        matrix: Task matrix, (N, T).
        higher_is_better: Direction of the scores; plasticity is the same for both.
        trained: The task of each row; see above.

    Returns:
        The average in the unit of the score, without dimensions.

    Raises:
        ValueError: If ``matrix`` has a wrong shape or NaN on its diagonal.

    Example:
        >>> round(plasticity([[0.9, 0.1], [0.5, 0.8]]).item(), 6)
        0.85
    """
    scores, order = _task_matrix(matrix, trained)
    return _read(scores, range(len(scores)), order).mean()


def intransigence(
    matrix: Scores,
    joint: Scores,
    *,
    higher_is_better: bool = True,
    trained: Sequence[int] | None = None,
) -> Tensor:
    """Intransigence: how far learning each task in turn stays behind learning them together.

    ``mean_j (a[j] - R[j, j])``, after Chaudhry et al., ECCV 2018. Negative when training in
    sequence did better.

    Args:
        matrix: Task matrix, (N, T).
        joint: Scores a of a reference model trained on all tasks together, (T,).
        higher_is_better: Direction of the scores.
        trained: The task of each row; see above.

    Returns:
        Mean shortfall in the unit of the score, without dimensions.

    Raises:
        ValueError: If an argument has a wrong shape or NaN in the entries read.

    Example:
        >>> round(intransigence([[0.9, 0.1], [0.5, 0.8]], joint=[0.92, 0.88]).item(), 6)
        0.05
    """
    scores, order = _task_matrix(matrix, trained)
    best = _read_reference("joint", joint, scores, order)
    return _improvement(best, _read(scores, range(len(scores)), order), higher_is_better)


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
                f"`{name}` is {score}, which is no score: pass the average of a run that converged."
            )
    if joint == finetune:
        raise ValueError(
            f"`joint` and `finetune` are both {joint}, so there is no gap to close: "
            "compare the scores themselves."
        )
    return 100 * float((method - finetune) / (joint - finetune))


def _improvement(scores: Tensor, over: Tensor, higher_is_better: bool) -> Tensor:
    """How much better some scores are than others on average; NaN for none."""
    return (scores - over if higher_is_better else over - scores).mean()


def _float64(scores: Scores) -> Tensor:
    return torch.as_tensor(scores, dtype=torch.float64, device="cpu")


def _task_matrix(scores: Scores, trained: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    """A task matrix in float64, with a checked shape, and the task of each row."""
    matrix = _float64(scores)
    if matrix.ndim != 2 or not len(matrix) or (trained is None and len(matrix) > matrix.shape[1]):
        raise ValueError(
            f"`matrix` has shape {tuple(matrix.shape)}: pass one row for each task trained so far, "
            "at least one, and one column for each task."
        )
    order = list(range(len(matrix)) if trained is None else trained)
    if len(order) != len(matrix) or not all(0 <= task < matrix.shape[1] for task in order):
        raise ValueError(
            f"`trained` is {order}, and `matrix` has shape {tuple(matrix.shape)}: pass the task "
            "of each row, counted from 0."
        )
    return matrix, order


def _distinct(tasks: Sequence[int]) -> list[int]:
    """Tasks in the order of their first training."""
    return list(dict.fromkeys(tasks))


def _read_end(scores: Tensor, order: Sequence[int]) -> tuple[Tensor, list[int]]:
    """The last scores of the tasks trained before the last row's, and those tasks."""
    earlier = [task for task in _distinct(order) if task != order[-1]]
    return _read(scores, [len(order) - 1] * len(earlier), earlier), earlier


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


def check_reference(name: str, scores: Scores, num_tasks: int) -> Tensor:
    """Return a reference model's scores, (T,) float64; ValueError for another shape."""
    reference = _float64(scores)
    if reference.shape != (num_tasks,):
        raise ValueError(
            f"`{name}` has shape {tuple(reference.shape)}: pass one score for each of the "
            f"{num_tasks} tasks."
        )
    return reference


def _read_reference(name: str, scores: Scores, matrix: Tensor, tasks: Sequence[int]) -> Tensor:
    """The scores of a reference model on some tasks of a matrix."""
    values = check_reference(name, scores, matrix.shape[1])[list(tasks)]
    if (missing := values.isnan()).any():
        task = tasks[int(missing.nonzero()[0])]
        raise ValueError(
            f"`{name}[{task}]` is NaN, but this metric reads it: measure the score on task {task}."
        )
    return values


def check_variant(variant: str) -> None:
    """Raise ValueError for an unknown variant of forgetting."""
    if variant not in get_args(ForgettingVariant):
        known = ", ".join(repr(name) for name in get_args(ForgettingVariant))
        raise ValueError(f"`variant` of forgetting is {variant!r}: pass one of {known}.")
