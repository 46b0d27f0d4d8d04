"""The clock of a Trainer: which task, which step of it, how long it is, whether it has ended."""

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, NotRequired, TypedDict
from weakref import ReferenceType, WeakKeyDictionary, ref

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.gradients import loss_scale
from recall_lightning.callbacks._trainer.position import Position
from recall_lightning.callbacks._trainer.resuming import ExactResume
from recall_lightning.callbacks._trainer.schedule import TaskSchedule, steps_are_regular
from recall_lightning.callbacks._trainer.training_data import differ, marks_of
from recall_lightning.weights.growth import shapes_of


class ClockState(TypedDict):
    """What a checkpoint holds of a clock, under each callback's own state; an older one less."""

    task: int | None
    visits: NotRequired[list[int]]
    task_ended: bool
    step_in_task: int
    task_steps: int | None
    earlier_steps: int
    first_step: int
    batches: int
    task_batches: float
    earlier_shapes: NotRequired[dict[str, list[int]] | None]
    shapes: NotRequired[dict[str, list[int]] | None]
    marks: NotRequired[dict[str, str]]
    seen_global_step: NotRequired[int]


class CallbackState(ClockState):
    """What a checkpoint holds of any callback that has the clock."""

    started: NotRequired[bool]
    tensors: NotRequired[int]
    """How many are in the whole of the state, where that is told."""


class TaskClock:
    """How far training has come; one object for all task-aware callbacks of a Trainer.

    Callbacks and statistics read it. It moves in Lightning's hooks, which every callback passes on
    and of which the first counts: a batch that has been counted is not counted again.

    Args:
        schedule: Tells the task of an epoch; by default every fit is a task.

    Attributes:
        visits: The tasks' indices in the order of training, the current one's last.
        task_ended: Whether the current task's last batch has been trained.
        step_in_task: Optimizer steps done in the current task.
        task_steps: Optimizer steps that the current task will take; None if that can't be known.
        entry: How often a task has begun; another number is another beginning.
        asked: What the next fit was said to train where every fit is a task: the task of an index,
            or ``"same"``, which goes on with the checkpoint's; None where it has to be told.
        left: Whether a resume leaves the checkpoint's task where it is: callbacks are to end it
            before the next one.
        earlier_shapes: The shapes of the model's weights in the visit before this one, by which
            what has grown since is told; None in the first.
        stepped: Whether the last batch ended with an optimizer step.
        has_learned: Whether a step of the current task had gradients; after a loss of None there
            are none, and AMP skips steps whose gradients overflow.
        stopped_early: Whether the last fit ended before its task's last batch.
        resumed: Whether a checkpoint's state was loaded that no training has gone on from yet.
        exact_resume: What the checkpoint held beside it.
        stored_position: What the checkpoint's position was counted in.

    Example:
        >>> clock = TaskClock()
        >>> clock.load_state_dict(clock.state_dict() | {"visits": [0, 1, 0]})
        >>> clock.task, clock.visit, clock.task_ended, clock.resumed
        (0, 2, False, True)
    """

    def __init__(self, schedule: TaskSchedule | None = None) -> None:
        self.schedule = TaskSchedule() if schedule is None else schedule
        self.visits: list[int] = []
        self.task_ended = False
        self.step_in_task = 0
        self.task_steps: int | None = None
        self.entry = 0
        self.stepped = False
        self.has_learned = False
        self.stopped_early = False
        self.resumed = False
        self.exact_resume = ExactResume()
        self.stored_position = Position()
        self.asked: int | Literal["same"] | None = None
        self.left = False
        self._marks: dict[str, str] = {}  # of the fit's training data, where it is a task
        self._fit: Literal["expected", "running", "over"] = "over"
        self._fit_task = 0  # where every fit is a task
        self._in_task = False  # otherwise the next batch begins one
        self._epoch: int | None = None  # for which the task was looked up last
        self._counted: int | None = None  # the last batch, by its number in the run
        self._has_gradients: bool | None = None  # the step that comes; None where nobody looks
        self._loss_scale: float | None = None  # AMP's, after the last step
        self._seen_global_step = 0
        self._earlier_steps = 0  # of Trainers before this one
        self._first_step = 0
        self._batches = 0
        self._task_batches: float = math.inf
        self._total_epochs: int | None = None  # of the stream, when it was last looked at
        self.earlier_shapes: dict[str, list[int]] | None = None
        self._shapes: dict[str, list[int]] | None = None  # in this visit, from its first batch on
        self._module: ReferenceType[LightningModule] | None = None  # that was fitted last
        self._other_module = False  # whether this fit's is another

    @property
    def task(self) -> int | None:
        """Index of the current task, from 0; None before the first."""
        return self.visits[-1] if self.visits else None

    @property
    def visit(self) -> int | None:
        """Number of the current visit, from 0; None before the first."""
        return len(self.visits) - 1 if self.visits else None

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

        It goes on after a resume from a checkpoint, and where the same Trainer fits again before
        the task's end. Any other fit starts its task anew: what an interrupted one left belongs to
        another model.
        """
        if self._fit == "running":
            return
        self._fit, self._counted, self.stopped_early = "running", None, False
        self.schedule.say_shortened_task(trainer)
        self._fit_task = self._task_of_fit(trainer)
        same_trainer = 0 < trainer.global_step == self._seen_global_step
        goes_on = self._in_task and self._batches > 0 and same_trainer and not self.task_ended
        self._in_task, self._epoch = self.resumed or goes_on, None
        if trainer.global_step < self._seen_global_step and not self.resumed:
            self._earlier_steps += self._seen_global_step
        self.resumed = False
        self._seen_global_step = trainer.global_step
        module = trainer.lightning_module
        self._other_module = self._module is not None and self._module() is not module
        self._module = ref(module)
        every_fit = self.schedule.task_at(trainer) is None
        if every_fit and self._other_module and self.visits and not self._in_task:
            rank_zero_warn(
                "this fit's LightningModule is another object than the last fit's, and is taken to "
                f"go on with what that one has learned, as task {self._fit_task}: for a new run "
                "make new callbacks"
            )

    def _task_of_fit(self, trainer: Trainer) -> int:
        """Tell which task a fit is, where each is one; end the checkpoint's if that is left."""
        asked, self.asked, self.left = self.asked, None, False
        if self.schedule.task_at(trainer) is not None:
            if asked is not None:
                raise MisconfigurationException(
                    "begin_task and go_on_with_task are for fits that are a task each, and here "
                    "the datamodule or task_epochs tells the tasks: leave them out"
                )
            return 0
        before, self._marks = self._marks, marks_of(trainer)
        if self.task is None:
            return asked if isinstance(asked, int) else 0
        in_midst = self.resumed and not self.task_ended
        if asked is None and self.resumed and self.schedule.is_told:
            self._say_what_a_resume_is(in_midst, differ(before, self._marks))
        if asked is None:
            return self.task if not self.task_ended else max(self.visits) + 1
        if asked == "same":
            return self.task
        if in_midst:
            self.left = self.task_ended = True
        return asked

    def _say_what_a_resume_is(self, in_midst: bool, other_data: bool | None) -> None:
        """Refuse a resume that may as well be the next task, or say what it is taken for."""
        task, next_task = self.task, max(self.visits) + 1
        goes_on = f"callback.go_on_with_task() before the fit says that task {task} goes on"
        begins = f"callback.begin_task({next_task}) that task {next_task} begins"
        if in_midst and other_data:
            raise MisconfigurationException(
                f"the checkpoint is from the midst of task {task} (from 0), and this fit has other "
                f"training data, so it cannot be told which task this is: {goes_on}, and {begins}"
            )
        if in_midst and other_data is None:
            rank_zero_warn(
                f"the checkpoint is from the midst of task {task} (from 0), which is taken to go "
                f"on, as the training data does not tell: {begins}"
            )
        if not in_midst and other_data is False:
            rank_zero_warn(
                f"the checkpoint is from the end of task {task} (from 0), so this fit is taken for "
                f"task {next_task}, with the same training data: {goes_on}"
            )

    def enter_task(self, trainer: Trainer, batch_comes: bool = False) -> None:
        """Begin the epoch's task, unless it is the current one.

        It is too early in ``on_train_start``: after a resume the dataloader may be stale there.

        Args:
            trainer: The Trainer.
            batch_comes: Whether a batch is about to be trained: a task that has ended and is
                trained further is visited once more.

        Raises:
            MisconfigurationException: If the task has no batch, at which Lightning ends the fit.
        """
        epoch = trainer.current_epoch
        unchanged = self._in_task and not self.task_ended and self._shapes is not None
        if self.left or (unchanged and batch_comes and epoch == self._epoch):
            return
        self._epoch = epoch
        task_at = self.schedule.task_at(trainer)
        task = self._fit_task if task_at is None else task_at(epoch)
        if not self._in_task or task != self.task or (batch_comes and self.task_ended):
            self._begin(trainer, task, task_at is not None)
        if batch_comes and self._shapes is None:  # a head may grow at the epoch's start
            self._shapes = shapes_of(trainer.lightning_module)

    def _begin(self, trainer: Trainer, task: int, scheduled: bool) -> None:
        self._check_batches(trainer, task)
        if task == 0 and scheduled and not self._in_task and self._other_module:
            self._begin_run()
        elif self._in_task and not self.task_ended:
            self._say_left(trainer)
        elif not self._in_task and not self.task_ended:  # what was interrupted starts anew
            self._say_interrupted(trainer, task)
            self.visits, self._shapes = self.visits[:-1], self.earlier_shapes
        self.visits = [*self.visits, task]
        self.earlier_shapes, self._shapes = self._shapes, None
        self._in_task = True
        self.entry += 1
        self.task_ended, self.step_in_task, self._batches = False, 0, 0
        self.has_learned, self._has_gradients = False, None
        self._loss_scale = loss_scale(trainer)
        if self.visit == 0:
            self._earlier_steps, self.earlier_shapes = 0, None
        self._first_step = trainer.global_step
        self._task_batches = self.schedule.batches_left(trainer)
        self.task_steps = self.schedule.steps_left(trainer)

    def _begin_run(self) -> None:
        """Forget the visits of another model; callbacks forget what belongs to them."""
        if self.task_ended or len(self.visits) > 1:
            rank_zero_warn(
                f"the callbacks have been through {len(self.visits)} tasks with another model, and "
                "this one starts with the first task: it is a new run, and what was learned of the "
                "other is forgotten; to train the other one on, fit the same LightningModule again"
            )
        self.visits = []

    def _say_interrupted(self, trainer: Trainer, task: int) -> None:
        if self._batches and self.task is not None:
            names = [self.schedule.task_name(trainer, each) for each in (self.task, task)]
            rank_zero_warn(
                f"what callbacks know is from the midst of the task {names[0]!r}, after "
                f"{self.step_in_task} steps, and this fit begins the task {names[1]!r} without it: "
                "to go on from there, load that checkpoint by ckpt_path; to begin the next task, "
                "give them what they knew at that one's end"
            )

    def _say_left(self, trainer: Trainer) -> None:
        if self._batches and self.task is not None:
            rank_zero_warn(
                f"the task {self.schedule.task_name(trainer, self.task)!r} was left before its "
                "last batch, after "
                f"{self.step_in_task} steps: nothing was done of what callbacks do at a task's end"
            )

    def _check_batches(self, trainer: Trainer, task: int) -> None:
        if trainer.num_training_batches == 0:
            raise MisconfigurationException(
                f"the task {self.schedule.task_name(trainer, task)!r} has no training batch, at "
                "which Lightning ends the fit, and tasks behind it would never be trained: give it "
                "data, or leave it out"
            )

    def check_trained(self, trainer: Trainer) -> None:
        """At a fit's end, refuse one that has trained nothing, unless it was meant not to.

        Lightning ends such a fit without a word of it in its state. It is meant by limits of 0, by
        a callback that stops it, and where a run that had come to its end is started again: not
        where another task was to be trained from its last checkpoint.

        Raises:
            MisconfigurationException: Saying what kept it from training.
        """
        if self._fit != "expected":
            return
        self._fit = "over"
        asked, self.asked = self.asked, None
        if self.resumed:
            self._seen_global_step = trainer.global_step  # the next fit counts on from there
        if 0 in (trainer.limit_train_batches, trainer.max_epochs, trainer.max_steps):
            return
        why = self._why_another_task(trainer, asked) if self.resumed else None
        if self.resumed and why is None:
            return
        if trainer.num_training_batches == 0:
            raise MisconfigurationException(
                "this fit has no training batch, so nothing was trained, and where every fit is a "
                "task it is none: give it data, or leave it out together with its validation "
                "dataloader"
            )
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        if 0 < steps <= trainer.global_step:
            limit = f"max_steps={steps}"
        elif 0 < epochs <= trainer.current_epoch:
            limit = f"max_epochs={epochs}"
        else:  # a callback has stopped it: a Timer whose time is over
            return
        if why is not None:
            raise MisconfigurationException(
                f"this fit trained nothing, as its checkpoint had come to {limit} before, though "
                f"it {why}: raise that by what this task is to train, as the checkpoint's own count"
            )
        raise MisconfigurationException(
            f"this fit trained nothing, as its Trainer had come to its {limit} before: raise "
            "trainer.fit_loop.max_epochs (or trainer.fit_loop.epoch_loop.max_steps) before every "
            "further fit, or make a Trainer for each"
        )

    def _why_another_task(
        self, trainer: Trainer, asked: int | Literal["same"] | None
    ) -> str | None:
        """Say by what a resume was to train another task than its checkpoint's, if it was."""
        if self.schedule.task_at(trainer) is not None:
            return None
        if isinstance(asked, int):
            return None if asked == self.task else f"was told that task {asked} begins"
        return "has other training data" if differ(self._marks, marks_of(trainer)) else None

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

    def see_gradients(self, optimizer: Optimizer) -> None:
        """Before an optimizer's step, see whether it has anything to go by."""
        if not self.has_learned and not self._has_gradients:
            groups = optimizer.param_groups
            self._has_gradients = any(p.grad is not None for g in groups for p in g["params"])

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
            if not self.has_learned:
                before, self._loss_scale = self._loss_scale, loss_scale(trainer)
                skipped = before is not None and (self._loss_scale or 0) < before
                self.has_learned = self._has_gradients is not False and not skipped
            self._correct_task_steps(trainer)

    def end_task(self) -> None:
        """End the task with the batch that has just been counted: the next one begins another."""
        self.task_ended = True
        self._fit_task = max(self.visits) + 1

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
        other.schedule = copy.copy(self.schedule)
        other.exact_resume = ExactResume()
        other.stored_position = Position()
        other._in_task, other._module = False, self._module
        return other

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_module": None}  # a weak reference cannot be pickled

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the progress in it, in plain Python."""
        return {"task": self.task} | {name.lstrip("_"): getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Every callback's state in a checkpoint holds it. Where callbacks counted for themselves,
        one that came later may have counted less: what has counted furthest stays.
        """
        behind = _position(state_dict) < self.position
        if self._fit == "expected" and self.resumed and behind:
            return
        unknown: dict[str, Any] = {
            "earlier_shapes": None,
            "shapes": None,
            "marks": {},
            "seen_global_step": self._seen_global_step,
        }  # to older checkpoints
        state_dict = unknown | state_dict | {"visits": _visits(state_dict)}
        for name in _STATE:
            setattr(self, name, state_dict[name.lstrip("_")])
        self.has_learned, self._loss_scale = self.step_in_task > 0, None
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


_PUBLIC = ("visits", "task_ended", "step_in_task", "task_steps", "earlier_shapes")
_STATE = [name if name in _PUBLIC else f"_{name}" for name in ClockState.__annotations__]
_STATE.remove("_task")  # the last of the visits
# a Trainer's, by whether its tasks are told
_CLOCKS: WeakKeyDictionary[Trainer, dict[bool, TaskClock]] = WeakKeyDictionary()


def clock_of(trainer: Trainer, clocks: Iterable[TaskClock]) -> TaskClock:
    """Return the clock that a Trainer's callbacks are to share.

    The clock that has counted furthest wins: where every fit is a task, a callback that is new in a
    later fit joins in the task that the others have come to. Another Trainer's clock is not taken
    along but counted on from, so that callbacks which stay with that Trainer keep theirs.

    Args:
        trainer: The Trainer.
        clocks: What its callbacks have brought along, one or more: all with tasks that are told, or
            none.
    """
    known = _CLOCKS.setdefault(trainer, {})
    furthest = max(clocks, key=lambda clock: (clock.position, clock in known.values()))
    if furthest not in known.values():
        furthest = known[furthest.schedule.is_told] = furthest.continued()
    return furthest


def _position(state: dict[str, Any]) -> tuple[int, bool, int]:
    return len(_visits(state)), state["task_ended"], state["step_in_task"]


def _visits(state: dict[str, Any]) -> list[int]:
    """Return the visits of a state; older ones know the task alone, and none was visited twice."""
    task = state.get("task")
    return list(state.get("visits", [] if task is None else range(task + 1)))
