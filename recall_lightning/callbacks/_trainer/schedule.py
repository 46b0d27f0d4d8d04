"""Which task an epoch belongs to, and how long a task is."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

_ENDLESS = 100_000  # epochs after which a task without a last epoch is taken to have none


class TaskSchedule:
    """The map from a Trainer's epochs to tasks; it is asked, and counts nothing itself.

    The task comes from the first of these that there is: the datamodule's ``task_at(epoch)``,
    ``task_epochs``; otherwise every fit is a task, and :meth:`task_at` returns None.

    Args:
        task_epochs: Epochs a task (int), or each task's first epoch (increasing, from 0).

    Raises:
        MisconfigurationException: For ``task_epochs`` of any other form.

    Example:
        >>> task_at = TaskSchedule([0, 2]).task_at(Trainer(logger=False))
        >>> [task_at(epoch) for epoch in range(4)]
        [0, 0, 1, 1]
    """

    is_told: ClassVar[bool] = True
    """Whether tasks are known beforehand, by whatever tells them."""

    def __init__(self, task_epochs: int | Sequence[int] | None = None) -> None:
        _check_task_epochs(task_epochs)
        if task_epochs is not None and not isinstance(task_epochs, int):
            # numpy's numbers would be in checkpoints, which load plain ones alone
            task_epochs = list(map(int, task_epochs))
        self.task_epochs: int | Sequence[int] | None = task_epochs

    def task_at(self, trainer: Trainer) -> Callable[[int], int] | None:
        """Return the map from epoch to task, or None where every fit is a task."""
        from_datamodule = _of_datamodule(trainer, "task_at")
        if from_datamodule is not None:
            return lambda epoch: int(from_datamodule(epoch))
        epochs = self.task_epochs
        if epochs is None:
            return None
        if isinstance(epochs, int):
            return lambda epoch: epoch // epochs
        return lambda epoch: sum(first <= epoch for first in epochs) - 1

    def task_name(self, trainer: Trainer, task: int) -> str:
        """Return the datamodule's name of a task, or ``task N``."""
        names = _of_datamodule(trainer, "task_names")
        return str(names[task]) if names is not None and task < len(names) else f"task {task}"

    def probes(self, trainer: Trainer) -> list[str]:
        """Return the datamodule's names of held-out sets that belong to no task."""
        return [str(name) for name in _of_datamodule(trainer, "probe_names") or []]

    def say_shortened_task(self, trainer: Trainer) -> None:
        """Warn where a fit, and with it a task of ``task_epochs``, ends before its last epoch."""
        if _of_datamodule(trainer, "task_at") is not None or not isinstance(self.task_epochs, int):
            return
        left = (trainer.max_epochs or 0) % self.task_epochs
        if trainer.max_epochs != -1 and left:
            rank_zero_warn(
                f"max_epochs={trainer.max_epochs} is no multiple of task_epochs="
                f"{self.task_epochs}: the last task ends after {left} of its epochs"
            )

    def known_tasks(self, trainer: Trainer) -> int | None:
        """Return the number of tasks, or None where only the future knows."""
        names = _of_datamodule(trainer, "task_names")
        if names is not None:
            return len(names)
        if isinstance(self.task_epochs, int):
            epochs = trainer.max_epochs
            return math.ceil(epochs / self.task_epochs) if epochs and epochs > 0 else None
        return None if self.task_epochs is None else len(self.task_epochs)

    def last_task_of_fit(self, trainer: Trainer) -> int | None:
        """Return the highest task that a fit comes to, or None where no limit tells its epochs."""
        task_at, epochs = self.task_at(trainer), trainer.max_epochs
        batches, steps = trainer.num_training_batches, trainer.max_steps
        if task_at is None:
            return None
        if steps > 0 and 0 < batches < math.inf and steps_are_regular(trainer):
            by_steps = math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
            epochs = by_steps if epochs is None or epochs < 0 else min(epochs, by_steps)
        if epochs is None or epochs < 0:
            return None
        return max((task_at(each) for each in range(min(epochs, _ENDLESS))), default=None)

    def total_epochs(self, trainer: Trainer) -> int | None:
        """Return the epochs of the datamodule's stream, which may become fewer meanwhile."""
        return _of_datamodule(trainer, "total_epochs")

    def last_epoch_of_task(self, trainer: Trainer) -> int | None:
        """Return the current task's last epoch, or None where it is not known to end."""
        end = self.total_epochs(trainer) if trainer.max_epochs in (-1, None) else trainer.max_epochs
        if end is None:
            end = trainer.current_epoch + (0 if self.task_at(trainer) is None else _ENDLESS)
        for epoch in range(trainer.current_epoch, end):
            if self._is_last_epoch_of_task(trainer, epoch):
                return epoch
        return None

    def is_last_batch_of_task(self, trainer: Trainer) -> bool:
        """Tell whether the batch that is being ended is the task's last."""
        if self.task_at(trainer) is None and 0 < trainer.max_steps <= trainer.global_step:
            return True
        return trainer.is_last_batch and self._is_last_epoch_of_task(trainer, trainer.current_epoch)

    def batches_left(self, trainer: Trainer) -> float:
        """Return the task's batches from this epoch's start on; infinity where none is known."""
        return self._epochs_left(trainer) * trainer.num_training_batches

    def steps_left(self, trainer: Trainer, batch_idx: int = 0) -> int | None:
        """Return the task's optimizer steps from a batch of this epoch on, or None if not known."""
        batches = trainer.num_training_batches
        a_step = trainer.accumulate_grad_batches if steps_are_regular(trainer) else 1
        an_epoch = math.ceil(batches / a_step) if batches != math.inf else math.inf
        most = trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else math.inf
        steps = min(self._epochs_left(trainer) * an_epoch - batch_idx // a_step, most)
        return None if steps == math.inf else int(steps)

    def _epochs_left(self, trainer: Trainer) -> float:
        last = self.last_epoch_of_task(trainer)
        return math.inf if last is None else last - trainer.current_epoch + 1

    def _is_last_epoch_of_task(self, trainer: Trainer, epoch: int) -> bool:
        task_at = self.task_at(trainer)
        if epoch + 1 == trainer.max_epochs:
            return True
        return task_at is not None and task_at(epoch + 1) != task_at(epoch)


class UntoldSchedule(TaskSchedule):
    """That of a stream whose tasks nobody announces: how long one is, nobody knows.

    Whatever a datamodule may tell is not read. Every fit begins a task, and ends the last.

    Example:
        >>> trainer = Trainer(logger=False, max_epochs=3)
        >>> UntoldSchedule().steps_left(trainer), UntoldSchedule().task_name(trainer, 2)
        (None, 'task 2')
    """

    is_told = False

    def task_at(self, trainer: Trainer) -> None:
        """Return None: no epoch tells."""

    def task_name(self, trainer: Trainer, task: int) -> str:
        """Return ``task N``."""
        return f"task {task}"

    def known_tasks(self, trainer: Trainer) -> None:
        """Return None: only the future knows."""

    def total_epochs(self, trainer: Trainer) -> None:
        """Return None: no stream counts."""

    def batches_left(self, trainer: Trainer) -> float:
        """Return infinity: none are known."""
        return math.inf

    def steps_left(self, trainer: Trainer, batch_idx: int = 0) -> None:
        """Return None: the task may end at any step."""


def steps_are_regular(trainer: Trainer) -> bool:
    """Tell whether the number of batches a step is known: Lightning steps, and always alike."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
    return trainer.lightning_module.automatic_optimization and not scheduled


def _of_datamodule(trainer: Trainer, name: str) -> Any:
    return getattr(getattr(trainer, "datamodule", None), name, None)


def _check_task_epochs(task_epochs: int | Sequence[int] | None) -> None:
    if task_epochs is None:
        return
    if isinstance(task_epochs, int):
        good = not isinstance(task_epochs, bool) and task_epochs > 0
    else:
        firsts = list(task_epochs)
        good = bool(firsts) and firsts == sorted(set(firsts)) and firsts[0] == 0
    if not good:
        raise MisconfigurationException(
            f"task_epochs={task_epochs!r} must be a positive number of epochs a task, or each "
            "task's first epoch as an increasing list that starts with 0"
        )
