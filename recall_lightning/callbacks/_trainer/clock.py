"""The clock of a Trainer: which task, which step of it, how long it is, whether it has ended."""

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, NotRequired, TypedDict
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

from recall_lightning.callbacks._trainer.position import Position
from recall_lightning.callbacks._trainer.resuming import ExactResume
from recall_lightning.callbacks._trainer.schedule import TaskSchedule, steps_are_regular


class ClockState(TypedDict):
    """What a checkpoint holds of a clock, under each callback's own state."""

    task: int | None
    task_ended: bool
    step_in_task: int
    task_steps: int | None
    earlier_steps: int
    first_step: int
    batches: int
    task_batches: float


class CallbackState(ClockState):
    """What a checkpoint holds of any callback that has the clock."""

    tensors: NotRequired[int]
    """How many are in the whole of the state, where that is told."""


class TaskClock:
    """How far training has come; one object for all task-aware callbacks of a Trainer.

    Callbacks and statistics read it. It moves in Lightning's hooks, which every callback passes on
    and of which the first counts: a batch that has been counted is not counted again.

    Args:
        schedule: Tells the task of an epoch; by default every fit is a task.

    Attributes:
        task: Index of the current task, from 0; None before the first.
        task_ended: Whether the current task's last batch has been trained.
        step_in_task: Optimizer steps done in the current task.
        task_steps: Optimizer steps that the current task will take; None if that can't be known.
        entry: How often a task has begun; another number is another beginning.
        stepped: Whether the last batch ended with an optimizer step.
        stopped_early: Whether the last fit ended before its task's last batch.
        resumed: Whether a checkpoint's state was loaded that no training has gone on from yet.
        exact_resume: What the checkpoint held beside it.
        stored_position: What the checkpoint's position was counted in.

    Example:
        >>> clock = TaskClock()
        >>> clock.load_state_dict(clock.state_dict() | {"task": 3})
        >>> clock.task, clock.task_ended, clock.resumed
        (3, False, True)
    """

    def __init__(self, schedule: TaskSchedule | None = None) -> None:
        self.schedule = TaskSchedule() if schedule is None else schedule
        self.task: int | None = None
        self.task_ended = False
        self.step_in_task = 0
        self.task_steps: int | None = None
        self.entry = 0
        self.stepped = False
        self.stopped_early = False
        self.resumed = False
        self.exact_resume = ExactResume()
        self.stored_position = Position()
        self._fit: Literal["expected", "running", "over"] = "over"
        self._fit_task = 0  # where every fit is a task
        self._in_task = False  # otherwise the next batch begins one
        self._counted: int | None = None  # the last batch, by its number in the run
        self._seen_global_step = 0
        self._earlier_steps = 0  # of Trainers before this one
        self._first_step = 0
        self._batches = 0
        self._task_batches: float = math.inf
        self._total_epochs: int | None = None  # of the stream, when it was last looked at

    @property
    def position(self) -> tuple[int, bool, int]:
        """How far it has counted: of two clocks the greater has counted further."""
        return _position(self.state_dict())

    def steps_trained(self, trainer: Trainer) -> int:
        """Return the optimizer steps so far, over all Trainers of one fit a task each."""
        return self._earlier_steps + trainer.global_step

    def expect_fit(self) -> None:
        """Before a fit, and before its checkpoint is loaded: what was loaded until now is old."""
        self._fit, self.resumed = "expected", False
        self.exact_resume.forget()
        self.stored_position.forget()

    def start_fit(self, trainer: Trainer) -> None:
        """Decide whether the last task goes on, and which task this fit is where every fit is one.

        It goes on after a resume from a checkpoint, and where the same Trainer fits again. Any
        other fit starts its task anew: what an interrupted one left belongs to another model.
        """
        if self._fit == "running":
            return
        self._fit, self._counted, self.stopped_early = "running", None, False
        self._fit_task = 0 if self.task is None else self.task + int(self.task_ended)
        same_trainer = 0 < trainer.global_step == self._seen_global_step
        self._in_task = self.resumed or (self._in_task and self._batches > 0 and same_trainer)
        if trainer.global_step < self._seen_global_step and not self.resumed:
            self._earlier_steps += self._seen_global_step
        self.resumed = False
        self._seen_global_step = trainer.global_step

    def enter_task(self, trainer: Trainer) -> None:
        """Begin the epoch's task, unless it is the current one.

        It is too early in ``on_train_start``: after a resume the dataloader may be stale there.
        """
        task_at = self.schedule.task_at(trainer)
        task = self._fit_task if task_at is None else task_at(trainer.current_epoch)
        if self._in_task and task == self.task:
            return
        self._in_task = True
        self.entry += 1
        self.task, self.task_ended, self.step_in_task, self._batches = task, False, 0, 0
        if task == 0:
            self._earlier_steps = 0
        self._first_step = trainer.global_step
        self._task_batches = self.schedule.batches_left(trainer)
        self.task_steps = self.schedule.steps_left(trainer)

    def follow_shortened_task(self, trainer: Trainer, batch_idx: int) -> None:
        """Count the task's steps again where the stream has become shorter meanwhile."""
        total, before = self.schedule.total_epochs(trainer), self._total_epochs
        self._total_epochs = total
        if total == before or before is None or self.task_steps is None:
            return
        if steps_are_regular(trainer):
            self._task_batches = self.schedule.batches_left(trainer)
            left = self.schedule.steps_left(trainer) or 0
            done = batch_idx // trainer.accumulate_grad_batches
            self.task_steps = self.step_in_task + left - done

    def follow_other_settings(self, trainer: Trainer, batch_idx: int) -> None:
        """After a resume, count the task's steps again where its length is another by now."""
        if self._batches == 0:  # a task that begins has its length
            self.stored_position.forget()
        if not self.stored_position.has_other_length(trainer, self.schedule):
            return
        self._task_batches = self._batches + self.schedule.batches_left(trainer) - batch_idx
        left = self.schedule.steps_left(trainer, batch_idx)
        self.task_steps = None if left is None else self.step_in_task + left

    def count_batch(self, trainer: Trainer) -> None:
        """Count a batch that has been trained, and its optimizer step if there was one."""
        batch = trainer.fit_loop.total_batch_idx
        if batch == self._counted:
            return
        self._counted = batch
        self.task_ended = self.schedule.is_last_batch_of_task(trainer)
        self._batches += 1
        # several optimizers count several steps a batch: what matters is that one was taken
        self.stepped = trainer.global_step != self._seen_global_step
        if self.stepped:
            self._seen_global_step = trainer.global_step
            self.step_in_task += 1
            self._correct_task_steps(trainer)

    def end_fit(self, trainer: Trainer) -> None:
        """End the task of a fit that stopped early, where every fit is a task."""
        if self._fit != "running":
            return
        self._fit = "over"
        self.stopped_early = self.task is not None and not self.task_ended
        if self.stopped_early and self.schedule.task_at(trainer) is None:
            self.task_ended = True

    def continued(self) -> "TaskClock":
        """Return a clock that counts on from here, for another Trainer."""
        other = copy.copy(self)
        other.schedule = TaskSchedule(self.schedule.task_epochs)
        other.exact_resume = ExactResume()
        other.stored_position = Position()
        other._in_task = False
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the progress in it, in plain Python."""
        return {name.lstrip("_"): getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Every callback's state in a checkpoint holds it. Where callbacks counted for themselves,
        one that came later may have counted less: what has counted furthest stays.
        """
        behind = _position(state_dict) < self.position
        if self._fit == "expected" and self.resumed and behind:
            return
        for name in _STATE:
            setattr(self, name, state_dict[name.lstrip("_")])
        self.resumed = self._fit != "running"  # the tuner loads within a fit, which goes on

    def _correct_task_steps(self, trainer: Trainer) -> None:
        """Where the module steps as it likes, tell the task's length from how far it has come."""
        if self.task_steps is None or steps_are_regular(trainer):
            return
        done = self._batches / self._task_batches
        if trainer.max_steps > 0:
            steps = trainer.global_step - self._first_step
            done = max(done, steps / (trainer.max_steps - self._first_step))
        self.task_steps = max(self.step_in_task, round(self.step_in_task / min(1, done)))


_PUBLIC = ("task", "task_ended", "step_in_task", "task_steps")
_STATE = [name if name in _PUBLIC else f"_{name}" for name in ClockState.__annotations__]
_CLOCKS: WeakKeyDictionary[Trainer, TaskClock] = WeakKeyDictionary()


def clock_of(trainer: Trainer, clocks: Iterable[TaskClock]) -> TaskClock:
    """Return the clock that a Trainer's callbacks are to share.

    The clock that has counted furthest wins: where every fit is a task, a callback that is new in a
    later fit joins in the task that the others have come to. Another Trainer's clock is not taken
    along but counted on from, so that callbacks which stay with that Trainer keep theirs.

    Args:
        trainer: The Trainer.
        clocks: What its callbacks have brought along, one or more.
    """
    own = _CLOCKS.get(trainer)
    furthest = max(clocks, key=lambda clock: (clock.position, clock is own))
    if furthest is not own:
        furthest = _CLOCKS[trainer] = furthest.continued()
    return furthest


def _position(state: dict[str, Any]) -> tuple[int, bool, int]:
    task = -1 if state["task"] is None else state["task"]
    return task, state["task_ended"], state["step_in_task"]
