"""A lower learning rate: the cheapest way to forget less."""

from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from recall_lightning.methods.method import Method
from recall_lightning.methods.step_rates import StepRates


class LowLearningRate(StepRates):
    """Multiplies every learning rate by ``factor`` in each task that has something to protect.

    The rate is lowered for the duration of each optimizer step only and put back right after it, so
    schedulers of every kind see their own rates and nothing adds up over tasks. What a
    ``LearningRateMonitor`` logs is the scheduler's rate, before the factor. As decoupled weight
    decay (AdamW) is proportional to the rate, it shrinks alike.

    Source: common practice; no paper of its own.

    Args:
        factor: What each parameter group's ``lr`` is multiplied by, more than 0.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: If ``factor`` is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LowLearningRate(factor=0.1)], logger=False)
    """

    def __init__(
        self,
        factor: float = 0.1,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not factor > 0:
            raise MisconfigurationException(f"factor={factor!r} must be a positive number")
        self.factor = factor

    def _step_starts(self, optimizer: Optimizer, *_: Any) -> None:
        if self.protects:
            self._multiply(optimizer, self.factor)


METHOD = Method(
    "low_lr",
    "a lower learning rate after the first task",
    LowLearningRate,
    keeps_first="from_first_task",
)
