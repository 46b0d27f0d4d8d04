"""After which steps of a task merges are due."""

from dataclasses import dataclass
from numbers import Integral
from typing import NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException


@dataclass(frozen=True)
class MergeInterval:
    """The interval between merges, in optimizer steps or as a part of the task.

    Attributes:
        every: An int of steps, or a float in (0, 1].

    Example:
        >>> [step for step in range(1, 11) if MergeInterval(0.25).is_due(step, 10)]
        [3, 5, 8, 10]
    """

    every: int | float

    @property
    def needs_length(self) -> bool:
        """Whether it is by a task's length that merges before its end are due."""
        return not isinstance(self.every, Integral) and self.every < 1

    @property
    def comes_before_end(self) -> bool:
        """Whether any may be due before a task's end."""
        return self.needs_length or isinstance(self.every, Integral)

    def is_due(self, step_in_task: int, task_steps: int | None) -> bool:
        """Tell whether one is due after a step; at the last one it always is.

        Args:
            step_in_task: Optimizer steps done in this task, from 1.
            task_steps: How many the task takes; None if nobody knows.

        Raises:
            MisconfigurationException: If that is not known and has to be.
        """
        if step_in_task == task_steps:
            return True
        if isinstance(self.every, Integral):
            return step_in_task % int(self.every) == 0
        if not self.needs_length:
            return False
        if task_steps is None:  # checked when the task started; a run that resumes may not know
            self.refuse_unknown_length()
        interval = self.every * task_steps
        # tolerance: 0.1 · 3 is a little more than 0.3
        return int(step_in_task / interval + 1e-9) > int((step_in_task - 1) / interval + 1e-9)

    def refuse_unknown_length(self) -> NoReturn:
        """Say that the length of a task has to be known.

        Raises:
            MisconfigurationException: That.
        """
        raise MisconfigurationException(
            f"every={self.every} is a fraction of the task, and the task has no known length: give "
            "every as a number of optimizer steps, or set Trainer(max_epochs=…, "
            "limit_train_batches=…) or Trainer(max_steps=…)"
        )
