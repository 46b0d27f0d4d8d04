"""What methods share that change learning rates for the duration of an optimizer step alone."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from recall_lightning.methods.protecting import ProtectingCallback


class StepRates(ProtectingCallback):
    """Hooks into the steps of a Trainer's optimizers, and puts their rates back after each.

    So schedulers of every kind see their own rates, and nothing adds up over tasks.

    Args:
        from_first_task: See :class:`~recall_lightning.methods.protecting.ProtectingCallback`.
        task_epochs: Likewise.
    """

    decides_at_start = False

    def __init__(
        self, from_first_task: bool = True, task_epochs: int | list[int] | None = None
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        self._hooks: list[RemovableHandle] = []
        self._rates: dict[int, list[Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the optimizers' steps."""
        super().on_train_start(trainer, pl_module)
        self._hook_into(trainer)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Hook into optimizers that were made anew, as for a head that has grown."""
        self._hook_into(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were."""
        super().teardown(trainer, pl_module, stage)
        self._remove_hooks()

    def _step_starts(self, optimizer: Optimizer, *_: Any) -> None:
        """Multiply the optimizer's rates, if it is time."""
        raise NotImplementedError

    def _step_ends(self, optimizer: Optimizer, *_: Any) -> None:
        """Put the rates back."""
        rates = self._rates.pop(id(optimizer), [])
        for group, rate in zip(optimizer.param_groups, rates, strict=bool(rates)):
            group["lr"] = rate

    def _multiply(self, optimizer: Optimizer, factor: float) -> None:
        self._rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def _hook_into(self, trainer: Trainer) -> None:
        self._remove_hooks()
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._step_starts))
            self._hooks.append(optimizer.register_step_post_hook(self._step_ends))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._rates = [], {}
