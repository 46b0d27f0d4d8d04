"""Warm-up and cosine decay over each task, or over the whole stream."""

import math
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.callbacks.task_aware import TaskAwareCallback


class WarmupCosine(TaskAwareCallback):
    """Raise each learning rate linearly from zero, then lower it to zero along a cosine.

    How far training has come is a fraction of the task's optimizer steps, or of the stream's
    epochs, so nothing need be known in advance but the Trainer's own limits.

    Args:
        over: ``"task"`` starts anew with each task, ``"stream"`` runs once.
        warmup: The part that is warm-up, in [0, 1).

    Raises:
        MisconfigurationException: If ``warmup`` is out of its range, or the length is not known.

    Example:
        >>> schedule = WarmupCosine("task", warmup=0.5)
        >>> [round(schedule.factor(part), 2) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, over: Literal["task", "stream"] = "task", warmup: float = 0.03) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise MisconfigurationException(f"warmup={warmup!r} must lie in [0, 1)")
        self.over = over
        self.warmup = warmup

    def factor(self, part: float) -> float:
        """Return what multiplies the learning rates after a part of training, in [0, 1]."""
        if part < self.warmup:
            return part / self.warmup
        return (1 + math.cos(math.pi * (part - self.warmup) / (1 - self.warmup))) / 2

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rates of the step that comes."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        factor = self.factor(self._part(trainer, batch_idx))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def _part(self, trainer: Trainer, batch_idx: int) -> float:
        """Tell how much of the task or stream will have come before the middle of this step."""
        if self.over == "task" and self.task_steps is not None:
            return min(1.0, (self.step_in_task + 0.5) / self.task_steps)
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        if self.over == "task" or batches == math.inf or not epochs or epochs < 0:
            raise MisconfigurationException(
                f"WarmupCosine over the {self.over} has to know its length: set "
                "Trainer(max_epochs=…), and limit_train_batches for data without a length"
            )
        done = trainer.current_epoch + (batch_idx + 0.5) / batches
        return min(1.0, done / epochs)
