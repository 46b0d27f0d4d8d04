"""How far a model's predictions have gone from its snapshot's, on data that is at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.process_means import sum_over_processes


def mean_divergence(
    context: TaskContext,
    found: FoundPredictions,
    then: Sequence[Tensor] | None,
    now: Sequence[Tensor] | None,
) -> float | None:
    """Return KL(snapshot ‖ model), in nats a prediction, the mean over all processes'.

    It foretells what is forgotten elsewhere ("RL's Razor", arXiv 2509.04259, which measures it on
    the new task's inputs, too).

    Args:
        context: The task.
        found: Of which kind predictions are.
        then: The parameters of those that are compared, under the snapshot; as
            :class:`~recall_lightning.recall.compared_predictions.ComparedPredictions` has them.
        now: Of the same, under other weights.

    Returns:
        None where predictions are not known, of no process.
    """
    total, count = _compared(found, then, now)
    count = int(sum_over_processes(context.trainer, float(count)))
    finite = math.isfinite(total)
    failed = sum_over_processes(context.trainer, float(not finite))
    total = sum_over_processes(context.trainer, total if finite else 0.0)
    if not count:
        return None
    return math.inf if failed else total / count


def _compared(
    found: FoundPredictions, then: Sequence[Tensor] | None, now: Sequence[Tensor] | None
) -> tuple[float, int]:
    """Return the sum over this process's predictions, and how many they are."""
    kind = found.kind
    if kind is None or not then or not now:
        return 0.0, 0
    try:
        each = torch.cat([kind.divergence(new, old) for new, old in zip(now, then, strict=True)])
    except ValueError:  # a distribution of which no divergence is known
        return 0.0, 0
    return float(each.double().sum()), each.numel()
