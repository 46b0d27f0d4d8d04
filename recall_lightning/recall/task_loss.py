"""The training loss of a task's batches under the weights as they are."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun


class UnknownLossError(ValueError):
    """The training loss cannot be had without training: the message says why."""


def task_loss(context: TaskContext, run: ModelRun, batches: Sequence[Any]) -> float:
    """Return the mean of what ``training_step`` returns on batches, over all processes.

    The module is in evaluation mode, logs nothing, and is left as it was.

    Args:
        context: The task.
        run: How the model is run.
        batches: On the module's device.

    Raises:
        UnknownLossError: If the module optimises by hand, or ``training_step`` fails on a batch or
            returns no loss of any.
    """
    module = context.pl_module
    if not module.automatic_optimization:
        raise UnknownLossError(f"{type(module).__name__} optimises by hand")

    def measure(some: Sequence[Any]) -> list[float]:
        losses = [_loss_of(module, batch, number) for number, batch in enumerate(some)]
        return [float(loss) for loss in losses if loss is not None]

    with undisturbed(module), run.quietly(context):
        own = run.evenly(context.trainer, batches, measure)
    total = torch.tensor([math.fsum(own), len(own)], dtype=torch.float64)
    if context.trainer.world_size > 1:
        total = context.trainer.strategy.reduce(total.to(module.device).float(), reduce_op="mean")
    if not float(total[1]):
        raise UnknownLossError("training_step returned no loss of any of the task's last batches")
    return float(total[0] / total[1])


def _loss_of(module: LightningModule, batch: Any, number: int) -> Tensor | None:
    try:
        given = (copy.copy(batch), number)  # a step may pop what it takes
        loss = module.training_step(*given[: _accepted(module)])
    except Exception as error:
        raise UnknownLossError(
            f"training_step cannot be run beside training: {type(error).__name__}: {error}"
        ) from error
    return loss.get("loss") if isinstance(loss, Mapping) else loss


def _accepted(module: LightningModule) -> int:
    """Return how many of (batch, batch_idx) a ``training_step`` takes."""
    given = inspect.signature(module.training_step).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in given):
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(2, sum(each.kind in places for each in given))
