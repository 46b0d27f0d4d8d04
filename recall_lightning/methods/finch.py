"""FINCH: a learning rate that is lower while the loss is high."""

import math
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.gradients import loss_scale
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingState
from recall_lightning.methods.step_rates import StepRates


class FinchState(ProtectingState):
    """What a checkpoint holds of it."""

    mean_loss: float | None
    step_losses: list[float]


class Finch(StepRates):
    """Multiplies every learning rate by min(limit, factor / √L), L the mean loss of late.

    L is an exponential mean of the training loss, L ← 0.9 L + 0.1 L_step, which starts anew in each
    task with its first step's. As in :class:`~recall_lightning.methods.low_lr.LowLearningRate` the
    rate is changed for the duration of each optimizer step, on top of whatever schedule there is.

    Source: FINCH (arXiv 2605.20005): what a step forgets is bounded by C₁ η √L + C₂ η² L, so that
    η = κ / √L keeps the bound constant, with the mean of 0.9 and an upper limit of η. The paper
    itself could not be read here, only its abstract and a reader's summary of its method, which
    leave open how κ and the limit are chosen for a model: here both are relative to the rate that
    is configured, κ by ``factor``. Where losses are below 0, which has no root, the limit is taken.

    Args:
        factor: κ relative to the learning rate, more than 0: the rate at a loss of 1.
        limit: What the rate is multiplied by at most.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: If ``factor`` or ``limit`` is not positive.

    Attributes:
        mean_loss: L; None before a task's first step.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Finch(factor=0.1)], logger=False)
    """

    state_form: ClassVar[type] = FinchState

    def __init__(
        self,
        factor: float = 0.1,
        limit: float = 1.0,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        for name, value in (("factor", factor), ("limit", limit)):
            if not (value > 0 and math.isfinite(value)):
                raise MisconfigurationException(f"{name}={value!r} must be a positive number")
        self.factor = factor
        self.limit = limit
        self.mean_loss: float | None = None
        self._losses: list[float] = []  # of the batches of a step
        self._multiplier: float | None = None  # of a step that is about to come
        self._stepping: set[int] = set()  # optimizers that compute a loss within their step

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Start the mean anew; hook into optimizers that were made anew."""
        self.mean_loss, self._losses = None, []
        super().on_task_start(trainer, pl_module, task)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep a batch's part of the step's loss."""
        self._losses.append(float(loss.detach()) / (loss_scale(trainer) or 1.0))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the step's loss into the mean, and have the rate follow."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._losses:
            own = torch.tensor(sum(self._losses), device=pl_module.device)
            step = float(trainer.strategy.reduce(own, reduce_op="mean"))
            self._losses = []
            if math.isfinite(step):  # AMP skips the others
                before = step if self.mean_loss is None else self.mean_loss
                self.mean_loss = _REMEMBERED * before + (1 - _REMEMBERED) * step
        self._multiplier = self.multiplier
        if id(optimizer) in self._stepping:
            self._lower(optimizer)

    @property
    def multiplier(self) -> float | None:
        """What learning rates are multiplied by now; None in a task with nothing to protect."""
        if not self.protects or self.mean_loss is None:
            return None
        if self.mean_loss <= 0:
            return self.limit
        return min(self.limit, self.factor / math.sqrt(self.mean_loss))

    def state_dict(self) -> dict[str, Any]:
        """Return the task, and the losses."""
        own = {"mean_loss": self.mean_loss, "step_losses": list(self._losses)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.mean_loss = state_dict["mean_loss"]
        self._losses = list(state_dict["step_losses"])

    def _step_starts(self, optimizer: Optimizer, *_: Any) -> None:
        """Where the step's loss is known, lower the rate; else the step computes it first."""
        self._stepping.add(id(optimizer))
        self._lower(optimizer)

    def _step_ends(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepping.discard(id(optimizer))
        super()._step_ends(optimizer)

    def _lower(self, optimizer: Optimizer) -> None:
        multiplier, self._multiplier = self._multiplier, None
        if multiplier is not None:
            self._multiply(optimizer, multiplier)

    def _remove_hooks(self) -> None:
        super()._remove_hooks()
        self._stepping, self._multiplier = set(), None


_REMEMBERED = 0.9  # of the mean loss, a step


METHOD = Method(
    "finch",
    "a learning rate that is lower while the loss is high",
    Finch,
    keeps_first="from_first_task",
)
