"""What the baselines share: which tasks have something to protect."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NotRequired

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from recall_lightning.callbacks._trainer.clock import CallbackState
from recall_lightning.callbacks._trainer.stored_state import damage_is_said
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.weights.naming import canonical_name, named_weights


class ProtectingState(CallbackState):
    """What a checkpoint holds of it; an older one holds less."""

    from_first_task: NotRequired[bool]


class ProtectingCallback(TaskAwareCallback):
    """A callback that protects what the model knew before the current task.

    Args:
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Attributes:
        decides_at_start: Whether it is settled when a task starts that it is protected. A run that
            resumes in the midst of the first task then goes on with the ``from_first_task`` that it
            began with, or is refused.

    Example:
        >>> callback = ProtectingCallback(from_first_task=False)
        >>> callback.clock.visits = [0]
        >>> callback.protects
        False
    """

    decides_at_start: ClassVar[bool] = True
    state_form: ClassVar[type] = ProtectingState

    def __init__(
        self, from_first_task: bool = True, task_epochs: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(task_epochs)
        self.from_first_task = from_first_task
        self._resumed = False
        self._began_with: bool | None = None  # as a checkpoint that was just loaded has it

    @property
    def protects(self) -> bool:
        """Whether the current task has something before it that is worth keeping."""
        return self.visit is not None and (self.visit > 0 or self.from_first_task)

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """After a resume in the midst of a task, check that what was restored is of its weights.

        Raises:
            ValueError: Naming the entry that is not.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume in the first task, refuse another ``from_first_task``.

        Raises:
            MisconfigurationException: If it has changed.
        """
        super().on_train_start(trainer, pl_module)
        resumed, self._resumed = self._resumed, False
        if resumed and self.task is not None and not self.task_ended:
            with damage_is_said(type(self).__name__):
                own = {canonical_name(n): p for n, p in pl_module.named_parameters()}
                self.check_fits(own | named_weights(pl_module))  # some may be frozen by now
        began_with, self._began_with = self._began_with, None
        if began_with in (None, self.from_first_task) or not self.decides_at_start:
            return
        if self.visit == 0 and not self.task_ended:
            raise MisconfigurationException(
                f"{type(self).__name__}: from_first_task={self.from_first_task}, and the first "
                f"task, in whose midst the checkpoint stands, began with {began_with}: resume with "
                "that, or from a checkpoint at its end"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the task, and whether the first one is protected."""
        return {**super().state_dict(), "from_first_task": self.from_first_task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._resumed = True
        self._began_with = state_dict.get("from_first_task")  # older checkpoints have none
