"""What the baselines share: which tasks have something to protect."""

from collections.abc import Sequence

from recall_lightning.callbacks.task_aware import TaskAwareCallback


class ProtectingCallback(TaskAwareCallback):
    """A callback that protects what the model knew before the current task.

    Args:
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Example:
        >>> callback = ProtectingCallback(from_first_task=False)
        >>> callback.clock.visits = [0]
        >>> callback.protects
        False
    """

    def __init__(
        self, from_first_task: bool = True, task_epochs: int | Sequence[int] | None = None
    ) -> None:
        super().__init__(task_epochs)
        self.from_first_task = from_first_task

    @property
    def protects(self) -> bool:
        """Whether the current task has something before it that is worth keeping."""
        return self.visit is not None and (self.visit > 0 or self.from_first_task)
