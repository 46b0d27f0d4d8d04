"""Which task a batch belongs to: Lightning's hooks in, task hooks out."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.clock import CallbackState, TaskClock, clock_of
from recall_lightning.callbacks._trainer.progress_bar import hide_items, show_items
from recall_lightning.callbacks._trainer.schedule import TaskSchedule
from recall_lightning.callbacks._trainer.stored_state import (
    check_checkpoint,
    check_state,
    say_missing_state,
)
from recall_lightning.checks import first_of
from recall_lightning.metrics.record import FoundBoundary
from recall_lightning.weights.naming import lazy_weights


class TaskAwareCallback(Callback):
    """A callback that knows its task: override :meth:`on_task_start` and the other task hooks.

    The task comes from the first of these that there is:

    1. a datamodule with ``task_at(epoch)``, such as :class:`~recall_lightning.TaskStream`;
    2. ``task_epochs``;
    3. otherwise every ``trainer.fit`` is a task.

    A task starts right before its first batch, after the LightningModule's own
    ``on_train_epoch_start``, so that :meth:`on_task_start` sees a head that was reset or has grown
    there. It ends with the last batch of its last epoch, before that epoch's validation, so that
    validation, checkpoints and loggers see what :meth:`on_task_end` did to the weights. Where every
    fit is a task and the fit stops early, it ends with the fit.

    Tasks may come back: with A, B, A, B the index of A is 0 in its first and second *visit*, and
    :attr:`visit` counts 0 to 3. A fit of another LightningModule that starts with task 0 is a new
    run, and a fit of the same one goes on from what it knows. Where every fit is a task, each is
    the next one, and one that is resumed goes on with its checkpoint's, unless :meth:`begin_task`
    or :meth:`go_on_with_task` says otherwise. A checkpoint from the midst of a task may be where
    the next one starts, such as the best of an epoch: if the training data has changed, one of the
    two must be called.

    Args:
        task_epochs: Epochs a task (int), or each task's first epoch (increasing, from 0).

    Raises:
        MisconfigurationException: For ``task_epochs`` of any other form.

    Attributes:
        clock: What tells the task and counts its steps: one object for all such callbacks of a
            Trainer. Where several Trainers follow each other, what has counted furthest goes on.

    Example:
        >>> class Announce(TaskAwareCallback):
        ...     def on_task_start(self, trainer, pl_module, task):
        ...         print(f"task {task} starts at epoch {trainer.current_epoch}")
    """

    state_form: ClassVar[type] = CallbackState
    """The form of :meth:`state_dict`, a TypedDict; a subclass that adds to it says so here."""

    def __init__(self, task_epochs: int | Sequence[int] | None = None) -> None:
        self.clock = TaskClock(TaskSchedule(task_epochs))
        # itself, not by another callback of its Trainer
        self._told = self.clock.schedule.task_epochs
        self._asked: int | Literal["same"] | None = None
        self._entry: int | None = None  # of the clock, that on_task_start went through for

    @property
    def task_epochs(self) -> int | Sequence[int] | None:
        """Epochs a task, or each task's first epoch, as one of the Trainer's callbacks was told."""
        return self.clock.schedule.task_epochs

    @task_epochs.setter
    def task_epochs(self, task_epochs: int | Sequence[int] | None) -> None:
        self.clock.schedule = TaskSchedule(task_epochs)
        self._told = self.clock.schedule.task_epochs

    @property
    def task(self) -> int | None:
        """Index of the current task, from 0; None before the first."""
        return self.clock.task

    @property
    def visit(self) -> int | None:
        """Number of the current visit of a task, from 0, counted over all tasks; None before it."""
        return self.clock.visit

    @property
    def task_ended(self) -> bool:
        """Whether the current task's last batch has been trained."""
        return self.clock.task_ended

    @property
    def step_in_task(self) -> int:
        """Optimizer steps done in the current task."""
        return self.clock.step_in_task

    @property
    def task_steps(self) -> int | None:
        """Optimizer steps that the current task will take; None if that can't be known."""
        return self.clock.task_steps

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

    def on_task_left(
        self, trainer: Trainer, pl_module: LightningModule, task: int, batch: Any
    ) -> None:
        """Called where a resume leaves a task in its midst, with the next task's first batch."""
        self.on_task_end(trainer, pl_module, task)

    @property
    def can_roll_back(self) -> bool:
        """Whether :meth:`on_rollback` leaves the callback as if the task had not been trained."""
        return False

    @property
    def may_roll_back(self) -> bool:
        """Whether this callback may put back the weights of a task's start."""
        return False

    def on_rollback(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after a task's end where the weights of its start have been put back."""

    def on_retuned(self, step: int) -> None:
        """Called after a fit where its last merge, of an optimizer step, has been made again."""

    @property
    def can_estimate(self) -> bool:
        """Whether :attr:`estimates` will tell of tasks to come."""
        return False

    @property
    def estimates(self) -> dict[str, float]:
        """What is estimated of the last task, by name, in nats a prediction.

        Those are ``estimated_forgetting``, by how far predictions on the task's own inputs have
        gone, and ``quadratic_forgetting``, by the curvature in earlier tasks.
        """
        return {}

    def merge_within(
        self, trainer: Trainer, pl_module: LightningModule, limits: Mapping[str, float]
    ) -> str | None:
        """Called after a task's end, before its validation, where an estimate is beyond its limit.

        Args:
            trainer: The Trainer.
            pl_module: The model, whose weights may be written.
            limits: Those of its :attr:`estimates`, by name.

        Returns:
            What was done so that it is kept, as a clause; None if nothing was.
        """
        return None

    @property
    def marked_steps(self) -> dict[str, list[int]]:
        """Steps worth marking on a plot over training, by label; see :meth:`steps_trained`."""
        return {}

    @property
    def found_boundaries(self) -> list[FoundBoundary] | None:
        """The tasks' ends that it has found in the data; None where it is told of them."""
        return None

    # What a user says of the next fit, where every fit is a task.

    def begin_task(self, task: int) -> None:
        """Have the next fit begin a task, whatever came before: one more, or one that comes back.

        If that fit is resumed from a checkpoint of the midst of a task, that one ends there, with
        the checkpoint's weights, as by an early stop.

        Args:
            task: Its index, from 0: the position of its validation dataloader.

        Raises:
            MisconfigurationException: If it is negative; in the fit, if a datamodule or
                ``task_epochs`` tells the tasks.
        """
        if isinstance(task, bool) or not isinstance(task, int) or task < 0:
            raise MisconfigurationException(f"begin_task: task={task!r} must be an integer from 0")
        self._asked = task

    def go_on_with_task(self) -> None:
        """Have the next fit go on with the task that came last, whatever data it has.

        If that had ended, it is visited once more.
        """
        self._asked = "same"

    # What subclasses use.

    def restart_task(self) -> None:
        """Have :meth:`on_task_start` called again before the next batch, for this callback alone.

        The task's steps are counted on, for other callbacks are in the midst of it.
        """
        self._entry = None

    def steps_trained(self, trainer: Trainer) -> int:
        """Return the optimizer steps so far, over all Trainers of one fit a task each."""
        return self.clock.steps_trained(trainer)

    def task_name(self, trainer: Trainer, task: int) -> str:
        """Return the datamodule's name of a task, or ``task N``."""
        return self.clock.schedule.task_name(trainer, task)

    def visit_name(self, trainer: Trainer) -> str:
        """Return the current task's name, with the number of its visit from the second on."""
        assert self.task is not None
        name, times = self.task_name(trainer, self.task), self.clock.visits.count(self.task)
        return name if times == 1 else f"{name} ({times})"

    def probes(self, trainer: Trainer) -> list[str]:
        """Return the datamodule's names of held-out sets that belong to no task."""
        return self.clock.schedule.probes(trainer)

    def known_tasks(self, trainer: Trainer) -> int | None:
        """Return the number of tasks, or None where only the future knows."""
        return self.clock.schedule.known_tasks(trainer)

    def last_epoch_of_task(self, trainer: Trainer) -> int | None:
        """Return the current task's last epoch, or None where it is not known to end."""
        return self.clock.schedule.last_epoch_of_task(trainer)

    # Lightning's hooks. A subclass that overrides one of these calls super().

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Share a clock with the Trainer's other callbacks; show the task's name."""
        _share_clock(trainer, self._with_same_tasks(trainer))
        if stage == "fit":  # a fit's own checkpoint is loaded after this; the tuner's was before
            self.clock.expect_fit()
            self.clock.asked = _asked(self._with_same_tasks(trainer))
            show_items(trainer.progress_bar_callback, _progress_bar_items)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the progress bar as it was."""
        hide_items(trainer.progress_bar_callback)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, check a checkpoint's position, restore what an exact resume needs."""
        lazy = lazy_weights(pl_module)
        if lazy:
            raise MisconfigurationException(
                f"{type(self).__name__}: the shape of {first_of(lazy)} is not known yet, as of a "
                "lazy layer: run the model on a batch before fit, as in its configure_model()"
            )
        self.clock.stored_position.check(trainer)
        self.clock.start_fit(trainer)
        self._asked = None
        if self is task_aware_callbacks(trainer)[-1]:  # the others may draw at random in this hook
            self.clock.exact_resume.restore(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have :attr:`task` be the epoch's, for the module's own hook, which comes after this."""
        self.clock.enter_task(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the task before its first batch, after whatever happens at an epoch's start."""
        if self.clock.left:
            self._end_task_that_is_left(trainer, pl_module, batch)
        self._enter_task_if_changed(trainer, pl_module)
        self.clock.follow_shortened_task(trainer, batch_idx)
        self.clock.follow_other_settings(trainer, batch_idx)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """See whether the step that comes has gradients."""
        self.clock.see_gradients(optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the optimizer step, if there was one, and end the task after its last batch."""
        self.clock.count_batch(trainer)
        assert self.task is not None
        if self.clock.stepped:
            self.on_task_step(trainer, pl_module, self.task)
        if self.task_ended:
            self.on_task_end(trainer, pl_module, self.task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task of a fit that stopped early; say so where a stream was cut off."""
        self.clock.end_fit(trainer)
        if not self.clock.stopped_early or self._entry != self.clock.entry:
            return
        assert self.task is not None
        if self.task_ended:
            self.on_task_end(trainer, pl_module, self.task)
        else:
            rank_zero_warn(
                f"training stopped after {self.step_in_task} steps of the task "
                f"{self.task_name(trainer, self.task)!r}, before its end: {type(self).__name__} "
                "did nothing of what it does at a task's end"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a fit that trained nothing."""
        self.clock.check_trained(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume at the last step, before its validation, end where it was meant to."""
        self.clock.exact_resume.start_validation(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what an exact resume needs and Lightning leaves out."""
        if self is task_aware_callbacks(trainer)[-1]:
            self.clock.exact_resume.save(trainer, pl_module, checkpoint)
            self.clock.stored_position.save(trainer, self.clock.schedule, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what :meth:`on_save_checkpoint` added; say so where it holds no state of this."""
        if trainer.state.fn == TrainerFn.FITTING:
            say_missing_state(self, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING and self is task_aware_callbacks(trainer)[-1]:
            check_checkpoint(checkpoint, pl_module)
            self.clock.stored_position.load(trainer, self.clock.schedule, checkpoint)
            self.clock.exact_resume.load(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the progress in it, in plain Python."""
        return {**self.clock.state_dict(), "started": self._entry == self.clock.entry}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, for all callbacks that share the clock.

        Raises:
            MisconfigurationException: If it lacks an entry, or one is of another type.
        """
        check_state(self, state_dict)
        self.clock.load_state_dict(state_dict)
        # a checkpoint of an epoch's very start comes before the task's; older ones don't say
        self._entry = self.clock.entry if state_dict.get("started", True) else None

    def _with_same_tasks(self, trainer: Trainer) -> list["TaskAwareCallback"]:
        """Return the callbacks that are told of the same tasks, this one among them."""
        told = self.clock.schedule.is_told
        others = [c for c in task_aware_callbacks(trainer) if c.clock.schedule.is_told == told]
        return others or [self]

    def _end_task_that_is_left(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any
    ) -> None:
        assert self.task is not None
        # all of them, before any enters the next one
        for callback in self._with_same_tasks(trainer):
            callback.on_task_left(trainer, pl_module, self.task, batch)
        self.clock.left = False

    def _enter_task_if_changed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.enter_task(trainer, batch_comes=True)
        if self._entry == self.clock.entry:
            return
        assert self.task is not None
        self.on_task_start(trainer, pl_module, self.task)
        self._entry = self.clock.entry


def task_aware_callbacks(trainer: Trainer) -> list[TaskAwareCallback]:
    """Return a Trainer's callbacks that know of tasks."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, TaskAwareCallback)]


def _asked(sharing: Sequence[TaskAwareCallback]) -> int | Literal["same"] | None:
    asked = {callback._asked for callback in sharing} - {None}
    if len(asked) > 1:
        raise MisconfigurationException(
            "the Trainer's callbacks were told different things of the next fit by begin_task or "
            "go_on_with_task: call one of them, on one callback"
        )
    return asked.pop() if asked else None


def _share_clock(trainer: Trainer, sharing: Sequence[TaskAwareCallback]) -> None:
    """Give a Trainer's callbacks one clock, and it what any of them was told of its tasks."""
    given = [each._told for each in sharing if each._told is not None]
    if any(epochs != given[0] for epochs in given):
        raise MisconfigurationException(
            f"the Trainer's callbacks have different task_epochs: {given}; give one of them"
        )
    clock = clock_of(trainer, [callback.clock for callback in sharing])
    clock.schedule.task_epochs = given[0] if given else None
    for callback in sharing:
        if callback.clock is not clock:
            callback.clock, callback._entry = clock, None


def _progress_bar_items(trainer: Trainer) -> dict[str, int | str]:
    """Return the items of all callbacks; of two with one label, the first callback's."""
    items: dict[str, int | str] = {}
    for callback in reversed(task_aware_callbacks(trainer)):
        items |= callback.progress_bar_items(trainer)
    return items
