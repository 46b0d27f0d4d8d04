"""A lower learning rate: the cheapest way to forget less."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback


class LowLearningRate(ProtectingCallback):
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

    decides_at_start = False

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
        self._hooks: list[RemovableHandle] = []
        self._rates: dict[int, list[Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the optimizers' steps."""
        super().on_train_start(trainer, pl_module)
        self._hook_into(trainer)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Hook into optimizers that were made anew, as for a head that has grown."""
        self._hook_into(trainer)

    def _hook_into(self, trainer: Trainer) -> None:
        self._remove_hooks()
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._lower))
            self._hooks.append(optimizer.register_step_post_hook(self._restore))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were."""
        super().teardown(trainer, pl_module, stage)
        self._remove_hooks()

    def _lower(self, optimizer: Optimizer, *_: Any) -> None:
        if self.protects:
            self._rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor

    def _restore(self, optimizer: Optimizer, *_: Any) -> None:
        rates = self._rates.pop(id(optimizer), [])
        for group, rate in zip(optimizer.param_groups, rates, strict=bool(rates)):
            group["lr"] = rate

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._rates = [], {}


METHOD = Method(
    "low_lr",
    "a lower learning rate after the first task",
    LowLearningRate,
    keeps_first="from_first_task",
)
