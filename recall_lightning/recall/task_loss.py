"""The training loss of a task's batches under the weights as they are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule

from recall_lightning.measuring.batches import detached
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun


class UnknownLossError(ValueError):
    """The training loss cannot be had without training: the message says why."""


Watch = Callable[[int, Any], AbstractContextManager[None]]
"""Is given a batch's number and the copy that a step is given, and entered around the step."""


def task_losses(
    context: TaskContext, run: ModelRun, batches: Sequence[Any], watch: Watch
) -> list[float]:
    """Return what ``training_step`` returns on each of this process's batches.

    To be called with the module undisturbed. It logs nothing, and batches are left as they are.

    Args:
        context: The task.
        run: How the model is run.
        batches: On the module's device.
        watch: Watches each step.

    Returns:
        A loss for each batch, NaN where the step returned none.

    Raises:
        UnknownLossError: If the module optimises by hand, or ``training_step`` fails on a batch or
            returns what is no loss.
    """
    module = context.pl_module
    if not module.automatic_optimization:
        raise UnknownLossError(f"{type(module).__name__} optimises by hand")
    accepted = _accepted(module)

    def losses(some: Sequence[Any]) -> list[float]:
        return [_loss_of(module, one, number, accepted, watch) for number, one in enumerate(some)]

    with run.quietly(context):
        return run.evenly(context.trainer, batches, losses)


def _loss_of(
    module: LightningModule, batch: Any, number: int, accepted: int, watch: Watch
) -> float:
    def step() -> float:
        given = (detached(batch), number)  # a step may write into its batch
        with watch(number, given[0]):
            loss = module.training_step(*given[:accepted])
        loss = loss.get("loss") if isinstance(loss, Mapping) else loss
        return math.nan if loss is None else float(loss)

    try:
        try:
            return step()
        except RuntimeError:  # as of a penalty on gradients
            with torch.enable_grad():
                return step()
    except Exception as error:
        raise UnknownLossError(
            f"training_step cannot be run beside training: {type(error).__name__}: {error}"
        ) from error


def _accepted(module: LightningModule) -> int:
    """Return how many of (batch, batch_idx) a ``training_step`` takes."""
    given = inspect.signature(module.training_step).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in given):
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(2, sum(each.kind in places for each in given))
