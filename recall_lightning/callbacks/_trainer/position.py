"""What a checkpoint's position in training is counted in, and whether a run that resumes is too."""

from collections.abc import Mapping
from typing import Any, TypedDict

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from recall_lightning.callbacks._trainer.schedule import TaskSchedule

_KEY = "recall_lightning_position"
_LENGTHS = ("last_epoch", "batches_an_epoch", "accumulate_grad_batches", "max_steps")
"""What the number of optimizer steps in a task comes from."""


class PositionState(TypedDict):
    """What a checkpoint holds of the position."""

    begun: int
    batches: int
    tasks: list[int]
    task_names: dict[int, str]
    goes_on: bool
    max_epochs: int | None
    processes: int
    batch_size: int | None
    last_epoch: int | None
    batches_an_epoch: int | None
    accumulate_grad_batches: int
    max_steps: int


class Position:
    """How far a checkpoint had come, in which tasks, epochs and batches.

    A run that resumes with others is refused where the position means nothing in them; else it is
    followed: what is left of the task is as long as it is now. One a Trainer.
    """

    def __init__(self) -> None:
        self._stored: dict[str, Any] | None = None

    def forget(self) -> None:
        """Drop what was loaded: it is another fit's."""
        self._stored = None

    def save(self, trainer: Trainer, schedule: TaskSchedule, checkpoint: dict[str, Any]) -> None:
        """Add the position to a checkpoint."""
        loop = trainer.fit_loop
        begun = loop.epoch_progress.current.ready
        names = [] if schedule.task_at(trainer) is None else _tasks(trainer, schedule, begun)
        checkpoint[_KEY] = {
            "begun": begun,
            "batches": loop.epoch_loop.batch_progress.current.processed,  # type: ignore[attr-defined]
            "tasks": _tasks(trainer, schedule, begun),
            "task_names": {task: schedule.task_name(trainer, task) for task in sorted(set(names))},
            "goes_on": _goes_on(trainer, schedule, begun),
            "max_epochs": trainer.max_epochs,
            "processes": trainer.world_size,
            "batch_size": _batch_size(trainer),
            **_lengths(trainer, schedule),
        }

    def load(self, trainer: Trainer, schedule: TaskSchedule, checkpoint: dict[str, Any]) -> None:
        """Take a checkpoint's position.

        Raises:
            MisconfigurationException: If the epochs that were trained would be of other tasks, or a
                task that ended goes on, or one that was to go on would have ended.
        """
        stored = self._stored = checkpoint.get(_KEY)  # older checkpoints have none
        if stored is None:
            return
        _check_tasks(trainer, schedule, stored)
        at_end = stored["batches"] == stored["batches_an_epoch"] and stored["begun"]
        goes_on = _goes_on(trainer, schedule, stored["begun"])
        if schedule.task_at(trainer) is not None and at_end and goes_on != stored["goes_on"]:
            last = stored["begun"] - 1
            name = schedule.task_name(trainer, stored["tasks"][-1])
            found = "had ended" if goes_on else "was to go on"
            would = "go on" if goes_on else "have ended, unmerged,"
            raise MisconfigurationException(
                f"the task {name!r} {found} after epoch {last} (from 0) when the checkpoint was "
                f"written, and would now {would} there: give it as many epochs as it had, or "
                "resume from an earlier checkpoint"
            )

    def check(self, trainer: Trainer) -> None:
        """Check that an epoch which goes on in its midst has the batches that it had.

        Also that optimizers have what they need in the state that they were given.

        Raises:
            MisconfigurationException: If it does not: samples would be trained twice or never.
        """
        stored = self._stored
        if stored is None:
            return
        _check_optimizers(trainer)
        done, of = stored["batches"], stored["batches_an_epoch"]
        if of is not None and done >= of:
            _stay_at_the_end(trainer)
            return
        if not done:
            return
        now = {
            "batches_an_epoch": _finite(trainer.num_training_batches),
            "batch_size": _batch_size(trainer),
            "processes": trainer.world_size,
        }
        # two processes that train 4 samples each train the 8 that one would
        if None not in (now["batch_size"], stored["batch_size"]):
            then = stored["batch_size"] * stored["processes"]
            stored = {**stored, "batch_size": then, "processes": 1}
            now |= {"batch_size": (_batch_size(trainer) or 0) * trainer.world_size, "processes": 1}
        changed = [
            f"{name.replace('_', ' ')} {now[name]} for {stored[name]}"
            for name in now
            if None not in (now[name], stored[name]) and now[name] != stored[name]
        ]
        if changed:
            raise MisconfigurationException(
                f"the checkpoint stands after {done} batches of an epoch that has changed since "
                f"({', '.join(changed)}): samples would be trained twice or never; resume with "
                "what it was written with, or from a checkpoint at an epoch's end"
            )
        before, after = stored["accumulate_grad_batches"], trainer.accumulate_grad_batches
        if (
            before != after
            and not _accumulation_varies(trainer)
            and (done % before or done % after)
        ):
            raise MisconfigurationException(
                f"accumulate_grad_batches={after} was {before} when the checkpoint was written, "
                f"and after {done} batches an optimizer step would be of parts of both: resume "
                f"with accumulate_grad_batches={before}, or from a checkpoint at an epoch's end"
            )

    def has_other_length(self, trainer: Trainer, schedule: TaskSchedule) -> bool:
        """Tell, once, before the first batch, whether the task has another length than it had."""
        stored, self._stored = self._stored, None
        if stored is None:
            return False
        now = _lengths(trainer, schedule)
        changed = [
            f"{name.replace('_', ' ')} {now[name]} for {stored[name]}"
            for name in _LENGTHS
            if now[name] != stored[name]
        ]
        if changed:
            rank_zero_info(
                f"the run goes on with other settings than its checkpoint's "
                f"({', '.join(changed)}): what is left of the task is as long as they make it"
            )
        return bool(changed)


def _tasks(trainer: Trainer, schedule: TaskSchedule, epochs: int) -> list[int]:
    """Return the task of each epoch; nothing where every fit is a task."""
    task_at = schedule.task_at(trainer)
    return [] if task_at is None else [task_at(epoch) for epoch in range(epochs)]


def _goes_on(trainer: Trainer, schedule: TaskSchedule, epochs: int) -> bool:
    """Tell whether the task of the last of these epochs goes on after it."""
    task_at = schedule.task_at(trainer)
    if epochs == 0 or epochs == trainer.max_epochs:
        return epochs == 0
    return task_at is None or task_at(epochs) == task_at(epochs - 1)


def _lengths(trainer: Trainer, schedule: TaskSchedule) -> dict[str, Any]:
    return {
        "last_epoch": schedule.last_epoch_of_task(trainer),
        "batches_an_epoch": _finite(trainer.num_training_batches),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "max_steps": trainer.max_steps,
    }


def _finite(batches: float) -> int | None:
    return None if batches == float("inf") else int(batches)


def _batch_size(trainer: Trainer) -> int | None:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    return size if isinstance(size, int) else None


def _accumulation_varies(trainer: Trainer) -> bool:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)


def _check_tasks(trainer: Trainer, schedule: TaskSchedule, stored: Mapping[str, Any]) -> None:
    then, now = stored["tasks"], _tasks(trainer, schedule, stored["begun"])
    if bool(then) != bool(now) and stored["begun"]:
        told, tell = "epochs told the task", "every fit is one"
        was, is_now = (told, tell) if then else (tell.replace("is", "was"), "epochs tell the task")
        raise MisconfigurationException(
            f"{was} when the checkpoint was written, and now {is_now}: resume with the datamodule "
            "and task_epochs that it was written with"
        )
    for epoch, (old, new) in enumerate(zip(then, now, strict=True)):
        if old != new:
            raise MisconfigurationException(
                f"epoch {epoch} (from 0) was of task {old} when the checkpoint was written, and "
                f"would now be of task {new}: give the tasks that were begun as many epochs as "
                "they had (epochs_per_task, or task_epochs)"
            )
    for task, name in stored["task_names"].items():
        if schedule.task_name(trainer, task) != name:
            raise MisconfigurationException(
                f"task {task} (from 0) was {name!r} when the checkpoint was written, and is now "
                f"{schedule.task_name(trainer, task)!r}: resume with the tasks in the order and "
                "under the names that they had"
            )


def _stay_at_the_end(trainer: Trainer) -> None:
    """Have an epoch that was over stay so where it would now have more batches."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = _finite(trainer.num_training_batches)
    current = progress.current
    if batches is None or not 0 < current.ready < batches:
        return
    behind = current.ready - current.completed
    current.ready = current.started = current.processed = batches  # type: ignore[attr-defined]
    current.completed = batches - behind


def _check_optimizers(trainer: Trainer) -> None:
    """Refuse the state of another kind of optimizer, which torch takes as it is."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            missing = sorted(optimizer.defaults.keys() - group.keys())
            if missing:
                raise MisconfigurationException(
                    f"the checkpoint's optimizer state is not of {type(optimizer).__name__}, and "
                    f"lacks its {', '.join(missing)}: resume with the optimizer that it was "
                    "written with"
                )
