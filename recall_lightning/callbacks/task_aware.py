"""Which task a batch belongs to: Lightning's hooks in, task hooks out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.resuming import (
    find_progress,
    restore_progress,
    save_progress,
)


class TaskAwareCallback(Callback):
    """A callback that knows its task: override :meth:`on_task_start` and the other task hooks.

    The task comes from the first of these that there is:

    1. a datamodule with ``task_at(epoch)``, such as :class:`~recall_lightning.TaskStream`;
    2. ``task_epochs``;
    3. otherwise every ``trainer.fit`` is a task.

    A task ends with the last batch of its last epoch, before that epoch's validation, so that
    validation, checkpoints and loggers see what :meth:`on_task_end` did to the weights. Where every
    fit is a task and the fit stops early, it ends with the fit.

    Args:
        task_epochs: Epochs a task (int), or each task's first epoch (increasing, from 0).

    Raises:
        MisconfigurationException: For ``task_epochs`` of any other form.

    Attributes:
        task: Index of the current task, from 0; None before the first.
        task_ended: Whether the current task's last batch has been trained.
        step_in_task: Optimizer steps done in the current task.
        task_steps: Optimizer steps that the current task will take; None if that can't be known.

    Example:
        >>> class Announce(TaskAwareCallback):
        ...     def on_task_start(self, trainer, pl_module, task):
        ...         print(f"task {task} starts at epoch {trainer.current_epoch}")
    """

    def __init__(self, task_epochs: int | Sequence[int] | None = None) -> None:
        _check_task_epochs(task_epochs)
        self.task_epochs = task_epochs
        self.task: int | None = None
        self.task_ended = False
        self.step_in_task = 0
        self.task_steps: int | None = None
        self._fit_task = 0
        self._in_task = False  # whether on_task_start went through
        self._resumed = False
        self._progress: dict[str, Any] | None = None  # a checkpoint's, for the last such callback
        self._seen_global_step = 0
        self._earlier_steps = 0  # of Trainers before this one
        self._first_step = 0
        self._batches = 0
        self._task_batches: float = math.inf
        self._total_epochs: int | None = None  # of the stream, when it was last looked at

    # What subclasses override.

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Called before the first batch of a task is trained."""

    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Called after every optimizer step of a task, the last one too."""

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Called after the last batch of a task, before that epoch's validation."""

    def progress_bar_items(self, trainer: Trainer) -> dict[str, int | str]:
        """Return what the progress bar shows while training, by label."""
        return {} if self.task is None else {"task": self.task_name(trainer, self.task)}

    @property
    def marked_steps(self) -> dict[str, list[int]]:
        """Steps worth marking on a plot over training, by label; see :meth:`steps_trained`."""
        return {}

    # What subclasses use.

    def steps_trained(self, trainer: Trainer) -> int:
        """Return the optimizer steps so far, over all Trainers of one fit a task each."""
        return self._earlier_steps + trainer.global_step

    def task_name(self, trainer: Trainer, task: int) -> str:
        """Return the datamodule's name of a task, or ``task N``."""
        names = _of_datamodule(trainer, "task_names")
        return names[task] if names is not None and task < len(names) else f"task {task}"

    def probes(self, trainer: Trainer) -> list[str]:
        """Return the datamodule's names of held-out sets that belong to no task."""
        return list(_of_datamodule(trainer, "probe_names") or [])

    def known_tasks(self, trainer: Trainer) -> int | None:
        """Return the number of tasks, or None where only the future knows."""
        names = _of_datamodule(trainer, "task_names")
        if names is not None:
            return len(names)
        if isinstance(self.task_epochs, int):
            epochs = trainer.max_epochs
            return math.ceil(epochs / self.task_epochs) if epochs and epochs > 0 else None
        return None if self.task_epochs is None else len(self.task_epochs)

    def last_epoch_of_task(self, trainer: Trainer) -> int | None:
        """Return the current task's last epoch, or None where it is not known to end."""
        for epoch in range(trainer.current_epoch, trainer.current_epoch + _ENDLESS):
            if self._is_last_epoch_of_task(trainer, epoch):
                return epoch
            if self._task_at(trainer) is None and trainer.max_epochs in (-1, None):
                return None
        return None

    # Lightning's hooks. A subclass that overrides one of these calls super().

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on ``task_epochs`` with the Trainer's other callbacks; show the task's name."""
        given = [
            callback.task_epochs
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, TaskAwareCallback) and callback.task_epochs is not None
        ]
        if any(epochs != given[0] for epochs in given):
            raise MisconfigurationException(
                f"the Trainer's callbacks have different task_epochs: {given}; give one of them"
            )
        self.task_epochs = given[0] if given else None
        if stage == "fit":  # a fit's own checkpoint is loaded after this; the tuner's was before
            self._resumed, self._progress = False, None
        bar = trainer.progress_bar_callback
        if stage == "fit" and bar is not None:
            bar.get_metrics = _with_items(bar.get_metrics, self)  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the progress bar back its own ``get_metrics``."""
        if trainer.progress_bar_callback is not None:
            vars(trainer.progress_bar_callback).pop("get_metrics", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the last task goes on, and which task this fit is where every fit is one.

        It goes on after a resume from a checkpoint, and where the same Trainer fits again. Any
        other fit starts its task anew: what an interrupted one left belongs to another model.
        """
        self._fit_task = 0 if self.task is None else self.task + int(self.task_ended)
        same_trainer = 0 < trainer.global_step == self._seen_global_step
        self._in_task = self._resumed or (self._in_task and same_trainer)
        if trainer.global_step < self._seen_global_step and not self._resumed:
            self._earlier_steps += self._seen_global_step
        self._resumed = False
        self._seen_global_step = trainer.global_step
        if self._progress is not None:
            restore_progress(trainer, pl_module, self._progress)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the epoch's task."""
        self._enter_task_if_changed(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enter the task, where Lightning skips the epoch's start: after some resumes."""
        self._enter_task_if_changed(trainer, pl_module)
        self._follow_shortened_task(trainer, batch_idx)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the optimizer step, if there was one, and end the task after its last batch."""
        assert self.task is not None
        self.task_ended = self._is_last_batch_of_task(trainer)
        self._batches += 1
        # several optimizers count several steps a batch: what matters is that one was taken
        if trainer.global_step != self._seen_global_step:
            self._seen_global_step = trainer.global_step
            self.step_in_task += 1
            self._correct_task_steps(trainer)
            self.on_task_step(trainer, pl_module, self.task)
        if self.task_ended:
            self.on_task_end(trainer, pl_module, self.task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task of a fit that stopped early; say so where a stream was cut off."""
        if self.task is None or self.task_ended:
            return
        if self._task_at(trainer) is None:
            self.task_ended = True
            self.on_task_end(trainer, pl_module, self.task)
        else:
            rank_zero_warn(
                f"training stopped after {self.step_in_task} steps of the task "
                f"{self.task_name(trainer, self.task)!r}, before its end: {type(self).__name__} "
                "did nothing of what it does at a task's end"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume at the last step, before its validation, end where it was meant to."""
        if self._progress is not None and "max_steps" in self._progress:
            trainer.fit_loop.epoch_loop.max_steps = self._progress["max_steps"]
        self._progress = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what an exact resume needs and Lightning leaves out."""
        if self._last_of_its_kind(trainer):
            save_progress(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what :meth:`on_save_checkpoint` added."""
        if trainer.state.fn == TrainerFn.FITTING and self._last_of_its_kind(trainer):
            self._progress = find_progress(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the progress in it, in plain Python."""
        return {name.lstrip("_"): getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in _STATE:
            setattr(self, name, state_dict[name.lstrip("_")])
        self._resumed = True

    def _last_of_its_kind(self, trainer: Trainer) -> bool:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return self is [each for each in callbacks if isinstance(each, TaskAwareCallback)][-1]

    def _enter_task_if_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not from on_train_start: after a resume the training dataloader may be stale there
        task_at = self._task_at(trainer)
        task = self._fit_task if task_at is None else task_at(trainer.current_epoch)
        if self._in_task and task == self.task:
            return
        self._in_task = False  # until on_task_start went through
        self.task, self.task_ended, self.step_in_task, self._batches = task, False, 0, 0
        if task == 0:
            self._earlier_steps = 0
        self._first_step = trainer.global_step
        self.task_steps = self._count_task_steps(trainer)
        self.on_task_start(trainer, pl_module, task)
        self._in_task = True

    def _task_at(self, trainer: Trainer) -> Callable[[int], int] | None:
        """Return the map from epoch to task, or None where every fit is a task."""
        from_datamodule = _of_datamodule(trainer, "task_at")
        if from_datamodule is not None:
            return from_datamodule
        epochs = self.task_epochs
        if epochs is None:
            return None
        if isinstance(epochs, int):
            return lambda epoch: epoch // epochs
        return lambda epoch: sum(first <= epoch for first in epochs) - 1

    def _is_last_epoch_of_task(self, trainer: Trainer, epoch: int) -> bool:
        task_at = self._task_at(trainer)
        if epoch + 1 == trainer.max_epochs:
            return True
        return task_at is not None and task_at(epoch + 1) != task_at(epoch)

    def _is_last_batch_of_task(self, trainer: Trainer) -> bool:
        if self._task_at(trainer) is None and 0 < trainer.max_steps <= trainer.global_step:
            return True
        return trainer.is_last_batch and self._is_last_epoch_of_task(trainer, trainer.current_epoch)

    def _count_task_steps(self, trainer: Trainer) -> int | None:
        last = self.last_epoch_of_task(trainer)
        epochs = math.inf if last is None else last - trainer.current_epoch + 1
        batches = trainer.num_training_batches
        self._task_batches = epochs * batches
        regular = _steps_are_regular(trainer)
        a_step = trainer.accumulate_grad_batches if regular else 1
        an_epoch = math.ceil(batches / a_step) if batches != math.inf else math.inf
        most = trainer.max_steps - trainer.global_step if trainer.max_steps > 0 else math.inf
        steps = min(epochs * an_epoch, most)
        return None if steps == math.inf else int(steps)

    def _follow_shortened_task(self, trainer: Trainer, batch_idx: int) -> None:
        """Count the task's steps again where the stream has become shorter meanwhile."""
        total, before = _of_datamodule(trainer, "total_epochs"), self._total_epochs
        self._total_epochs = total
        if total == before or before is None or self.task_steps is None:
            return
        if _steps_are_regular(trainer):
            left = self._count_task_steps(trainer) or 0
            done = batch_idx // trainer.accumulate_grad_batches
            self.task_steps = self.step_in_task + left - done

    def _correct_task_steps(self, trainer: Trainer) -> None:
        """Where the module steps as it likes, tell the task's length from how far it has come."""
        if self.task_steps is None or _steps_are_regular(trainer):
            return
        done = self._batches / self._task_batches
        if trainer.max_steps > 0:
            steps = trainer.global_step - self._first_step
            done = max(done, steps / (trainer.max_steps - self._first_step))
        self.task_steps = max(self.step_in_task, round(self.step_in_task / min(1, done)))


_STATE = ["task", "task_ended", "step_in_task", "task_steps"]
_STATE += ["_earlier_steps", "_first_step", "_batches", "_task_batches"]
_ENDLESS = 100_000  # epochs after which a task without a last epoch is taken to have none


def _of_datamodule(trainer: Trainer, name: str) -> Any:
    return getattr(getattr(trainer, "datamodule", None), name, None)


def _steps_are_regular(trainer: Trainer) -> bool:
    """Tell whether the number of batches a step is known: Lightning steps, and always alike."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
    return trainer.lightning_module.automatic_optimization and not scheduled


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


def _with_items(
    get_metrics: Callable[..., dict[str, Any]], callback: TaskAwareCallback
) -> Callable[..., dict[str, Any]]:
    def get_metrics_with_items(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {**callback.progress_bar_items(trainer), **get_metrics(trainer, pl_module)}

    return get_metrics_with_items
