"""What the callbacks share that read a score on every task from the user's own validation."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.carried_metrics import CarriedMetrics
from recall_lightning.callbacks._trainer.direction import direction_of
from recall_lightning.callbacks._trainer.metrics_apart import metrics_apart
from recall_lightning.callbacks._trainer.monitored_metric import (
    check_logged,
    loaders_without,
    logged_for,
    scores_by_loader,
)
from recall_lightning.callbacks._trainer.validation_loaders import (
    moved_loader,
    note_loaders,
    validation_batches,
)
from recall_lightning.callbacks.task_aware import TaskAwareCallback


class TaskScoreCallback(TaskAwareCallback):
    """A callback that reads a metric of the validation: a dataloader a task, each its own score.

    While it is in a Trainer, a torchmetrics object that is logged for several dataloaders starts
    anew with each, for whoever reads what is logged. What it cannot read as each dataloader's own
    score it refuses, in the sanity check where there is one.

    Args:
        monitor: The metric's name as ``validation_step`` logs it, without ``/dataloader_idx_N``;
            ``{idx}`` in it stands for the dataloader's index.
        mode: ``"max"``, ``"min"``, or ``"auto"`` to tell it from the name.
        task_epochs: See :class:`~recall_lightning.callbacks.task_aware.TaskAwareCallback`.

    Attributes:
        higher_is_better: The direction of the scores.

    Raises:
        MisconfigurationException: If the name or ``mode`` does not tell a metric and its direction.
    """

    def __init__(
        self, monitor: str, mode: str = "auto", task_epochs: int | list[int] | None = None
    ) -> None:
        super().__init__(task_epochs)
        name, suffix, _ = monitor.partition("/dataloader_idx_")
        if suffix:
            raise MisconfigurationException(
                f"{self._called}: monitor={monitor!r} names one dataloader's metric: leave the end "
                f"out, monitor={name!r}, for it is read for every dataloader"
            )
        self.monitor = monitor
        self.higher_is_better = direction_of(self._called, monitor, mode)
        self._direction_was_guessed = mode == "auto"
        self._loader = -1
        self._carried = CarriedMetrics()

    def scores(self, trainer: Trainer) -> list[float]:
        """Return the score on every dataloader, in ``on_validation_end``.

        Raises:
            MisconfigurationException: If what was logged does not tell it.
        """
        metrics_apart(trainer).check_totals(self._called)
        loaders = len(trainer.num_val_batches)
        self._check_direction(trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            note_loaders(self, trainer.val_dataloaders)
        return scores_by_loader(self._called, trainer, self.monitor, loaders)

    def check_loaders(self, trainer: Trainer, loaders: int) -> None:
        """Check that there is a validation dataloader for each task, as far as they are known.

        Raises:
            MisconfigurationException: If there is not.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        tasks, probes = self.known_tasks(trainer), self.probes(trainer)
        if tasks is not None and loaders != tasks + len(probes):
            behind = f", and behind them {', '.join(probes)} too" if probes else ""
            raise MisconfigurationException(
                f"{self._called}: there must be a validation dataloader for each of the tasks, "
                f"{tasks} in all, in their order{behind}, and there are {loaders}"
            )
        last = self.clock.schedule.last_task_of_fit(trainer)
        last = max((task for task in (self.task, last) if task is not None), default=0)
        if loaders <= last:
            raise MisconfigurationException(
                f"{self._called}: task {last} (counted from 0) needs {last + 1} validation "
                f"dataloaders or more, one a task in their order, and there are {loaders}: pass "
                "val_dataloaders=[one of each task] to every fit (a fit is a task, unless a "
                "TaskStream, task_epochs or begin_task says otherwise)"
            )

    # Lightning's hooks. A subclass that overrides one of these calls super().

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation dataloaders before anything is trained."""
        super().on_train_start(trainer, pl_module)
        batches = validation_batches(trainer)
        if not batches:
            return
        self.check_loaders(trainer, len(batches))
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        moved = moved_loader(self, trainer.val_dataloaders)
        if moved is not None:
            raise MisconfigurationException(
                f"{self._called}: validation dataloader {moved[0]} has the data of what was "
                f"dataloader {moved[1]} when scores were read last, so its scores would count for "
                "another task: pass all of them in one order to every fit"
            )
        if 0 in batches:
            raise MisconfigurationException(
                f"{self._called}: validation dataloader {batches.index(0)} has no batches, so its "
                "task has no score: give it some data"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the module's metrics."""
        super().on_validation_start(trainer, pl_module)
        self._loader = -1
        self._carried.start()
        metrics_apart(trainer).start()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let metrics begin anew with another dataloader."""
        metrics_apart(trainer).enter(trainer, dataloader_idx)
        if dataloader_idx != self._loader:
            self._carried.enter(pl_module, first=self._loader == -1)
            self._loader = dataloader_idx

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Refuse a number that was computed over several dataloaders."""
        if self._reads(trainer):
            loaders = len(trainer.num_val_batches)
            logged = logged_for(trainer, self.monitor, dataloader_idx, loaders)
            self._carried.check(self._called, trainer, logged)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put metrics together again for what the module does with them now."""
        metrics_apart(trainer).leave()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the sanity check, refuse what will be no score of each dataloader."""
        if not trainer.sanity_checking:
            return
        loaders = len(trainer.num_val_batches)
        metrics_apart(trainer).check_totals(self._called)
        check_logged(self._called, trainer, self.monitor, loaders, whole=False)
        self._check_direction(trainer)
        missing = loaders_without(trainer, self.monitor, loaders)
        if missing and trainer.state.fn == TrainerFn.FITTING:
            rank_zero_warn(
                f"{self._called}: monitor={self.monitor!r} was not logged in the sanity check for "
                f"validation dataloader {missing[0]}; a validation without it ends training"
            )

    def _reads(self, trainer: Trainer) -> bool:
        """Whether the scores of the validation that runs are read."""
        return trainer.state.fn == TrainerFn.FITTING or self.task is None

    @property
    def _called(self) -> str:
        return type(self).__name__

    def _check_direction(self, trainer: Trainer) -> None:
        """Where it was told from the name, see whether the logged object says the same."""
        logged = logged_for(trainer, self.monitor, 0, len(trainer.num_val_batches))
        if logged is None or logged.is_tensor or not self._direction_was_guessed:
            return
        if logged.value.higher_is_better not in (None, self.higher_is_better):
            mode = "max" if logged.value.higher_is_better else "min"
            raise MisconfigurationException(
                f"{self._called}: by the name of {self.monitor!r} the "
                f"{'higher' if self.higher_is_better else 'lower'} is better, and by the "
                f"{type(logged.value).__name__} that is logged it is the other way round: pass "
                f"mode={mode!r}, or the other"
            )
