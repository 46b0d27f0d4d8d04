"""Early stopping of a task, after which the next one starts."""

import math
from typing import Any, ClassVar, Literal, NotRequired

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from recall_lightning.callbacks._task_scores import TaskScoreCallback
from recall_lightning.callbacks._trainer.clock import CallbackState


class EarlyStoppingState(CallbackState):
    """What a checkpoint holds of it; an older one holds less."""

    monitor: NotRequired[str]
    best: float | None
    without_improvement: int
    first_epoch: int


class TaskEarlyStopping(TaskScoreCallback):
    """End a task of a :class:`~recall_lightning.TaskStream` once its own score stops improving.

    Lightning's ``EarlyStopping`` ends the whole stream, and compares scores of different tasks.
    This one reads the validation dataloader of the task that is trained, starts anew with every
    task, and moves on to the next one.

    A task still ends as others do: with a whole epoch, at whose last batch callbacks merge, before
    its validation. So a decision at an epoch's last validation lets the next epoch be the task's
    last, and one at an earlier validation the current epoch.

    Args:
        monitor: As in :class:`~recall_lightning.ForgettingMonitor`, the metric's name without
            ``/dataloader_idx_N``.
        patience: How many validations in a row may bring no improvement.
        min_delta: What counts as one: more than this, ≥ 0.
        mode: ``"max"``, ``"min"``, or ``"auto"`` to tell it from the name.
        min_epochs: How many epochs every task has at least.

    Attributes:
        best: The task's best score so far; None before its first validation.

    Raises:
        MisconfigurationException: For arguments out of their range, without a TaskStream, or if
            ``monitor`` is never logged.

    Example:
        >>> TaskEarlyStopping(monitor="val/loss", patience=2).mode
        'min'
    """

    state_form: ClassVar[type] = EarlyStoppingState

    def __init__(
        self,
        monitor: str,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["auto", "max", "min"] = "auto",
        min_epochs: int = 1,
    ) -> None:
        super().__init__(monitor, mode)
        for name, value in (("patience", patience), ("min_epochs", min_epochs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MisconfigurationException(f"{name}={value!r} must be an integer of 1 or more")
        if not 0 <= min_delta < math.inf:
            raise MisconfigurationException(
                f"min_delta={min_delta!r} must be a number of 0 or more"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.mode = "max" if self.higher_is_better else "min"
        self.min_epochs = min_epochs
        self.best: float | None = None
        self._without_improvement = 0
        self._first_epoch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer whose tasks can't be ended."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not hasattr(trainer.datamodule, "end_task_after"):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "TaskEarlyStopping ends the tasks of a TaskStream, and the Trainer was given none: "
                "pass trainer.fit(model, datamodule=stream), or use Lightning's EarlyStopping "
                "where every fit is a task"
            )

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Forget the last task's scores."""
        self.best, self._without_improvement = None, 0
        self._first_epoch = trainer.current_epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the task's score with its best, and end the task if its time has come."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self.task is None:
            return
        score = self.scores(trainer)[self.task]
        sign = 1 if self.mode == "max" else -1
        improved = self.best is None or sign * (score - self.best) > self.min_delta
        if improved and not math.isnan(score):  # which no later score would be better than
            self.best, self._without_improvement = score, 0
            return
        self._without_improvement += 1
        last = trainer.current_epoch + int(trainer.is_last_batch)
        last = max(last, self._first_epoch + self.min_epochs - 1)
        stop = self._without_improvement >= self.patience and not self.task_ended
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            saved = trainer.datamodule.end_task_after(last)  # type: ignore[attr-defined]
            if saved:
                rank_zero_info(
                    f"the task {self.task_name(trainer, self.task)!r} ends after epoch {last}, "
                    f"{saved} earlier than planned: {self.monitor} has not improved on "
                    f"{'anything' if self.best is None else format(self.best, '.4g')} for "
                    f"{self._without_improvement} validations"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the task's best score and how long ago it was."""
        own = {
            "monitor": self.monitor,
            "best": self.best,
            "without_improvement": self._without_improvement,
            "first_epoch": self._first_epoch,
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            MisconfigurationException: If the best score is of another metric.
        """
        super().load_state_dict(state_dict)
        then = state_dict.get("monitor", self.monitor)  # older checkpoints have none
        if then != self.monitor:
            raise MisconfigurationException(
                f"TaskEarlyStopping: monitor={self.monitor!r}, and the checkpoint's best score is "
                f"of {then!r}: resume with that"
            )
        self.best = state_dict["best"]
        self._without_improvement = state_dict["without_improvement"]
        self._first_epoch = state_dict["first_epoch"]
