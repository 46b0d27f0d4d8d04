"""How much of every task a model knows, task after task."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NotRequired

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from recall_lightning.callbacks._limits import EndedTask, Limits, OnLimit
from recall_lightning.callbacks._task_report import TaskReport
from recall_lightning.callbacks._task_scores import TaskScoreCallback
from recall_lightning.callbacks._trainer.clock import CallbackState
from recall_lightning.callbacks._trainer.loggers import is_remote, run_folder
from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.optimizer_state import StateOfParameters
from recall_lightning.callbacks._trainer.validation_loaders import moved_loader
from recall_lightning.callbacks._trainer.validation_schedule import check_validation_falls_on_end
from recall_lightning.callbacks.task_aware import task_aware_callbacks
from recall_lightning.checks import first_of
from recall_lightning.metrics.record import RecordState, TaskRecord
from recall_lightning.weights.sharding import gathered
from recall_lightning.weights.snapshot import Snapshot

# What is logged under continual/ besides the tasks.
_RESERVED = {"task", "matrix", "matrix_image", "average", "backward_transfer", "forward_transfer"}
_RESERVED |= {"forgetting", "plasticity", "scores_by_task", "estimated_forgetting", "report"}
_RESERVED |= {"quadratic_forgetting"}


class MonitorState(CallbackState):
    """What a checkpoint holds of it."""

    record: RecordState
    exceeded: NotRequired[list[dict[str, Any]]]
    start: NotRequired[dict[str, Tensor] | None]
    start_optimizers: NotRequired[StateOfParameters | None]


class ForgettingMonitor(TaskScoreCallback):
    """Fill a task matrix from your own validation metric, and log what was forgotten.

    Give the Trainer one validation dataloader a task, in the order of the tasks and all of them
    from the start. The validation at each task's end becomes a row of the matrix: the score on
    every task. A task that comes back adds a row each time, and has one column. A torchmetrics
    object that is logged for several dataloaders starts anew with each while the monitor is there,
    for whoever reads what is logged; by Lightning alone it would go on over all of them. What is
    logged as no dataloader's own score is refused, in the sanity check where there is one. The
    untrained model's row, which forward transfer needs, comes from ``trainer.validate(…)`` before
    ``fit``. (The sanity check is not read: Lightning drops what it logs.) A row that is not of its
    task's last weights, as after an early stop or ``RecallCallback.retune``, says so until
    ``trainer.validate(…)`` measures it again.

    Logged after each task, against ``continual/task`` (tasks trained): ``continual/average``,
    ``continual/backward_transfer``, ``continual/forward_transfer``, ``continual/forgetting`` (the
    maximum runs from the task's own training on), ``continual/plasticity`` and
    ``continual/<task name>``; in Weights & Biases also the matrix as a table and an image. Into the
    run's folder go ``task_matrix.json``, ``task_matrix.png`` and ``curves.png``. Nothing here knows
    how the model is trained: the callback is of use without any other of ours. A Trainer takes one.

    Args:
        monitor: The metric's name as ``validation_step`` logs it, without Lightning's
            ``/dataloader_idx_N``; ``{idx}`` in it stands for the dataloader's index where the
            module puts that into the name itself, as in ``"val_{idx}/acc"``.
        mode: ``"max"`` if higher is better, ``"min"`` if lower; ``"auto"`` tells it from the name.
        folder: Where the files go; by default into the first logger's folder, and nowhere without
            a logger.
        task_epochs: See :class:`~recall_lightning.callbacks.task_aware.TaskAwareCallback`; what
            another callback of the Trainer was given counts here too.
        limits: How much may be lost after a task, by name: of ``"forgetting"``, of the name of a
            task or held-out set (by how much its score is worse than since its own training, or
            than before any), or what RecallCallback estimates under its kfac rules, the default,
            without old data, in nats a prediction: ``"estimated_forgetting"``, by how far
            predictions on the task's own inputs have gone in it, ``"quadratic_forgetting"``, by the
            curvature in earlier tasks.
        on_limit: What happens where one is not kept: ``"warn"``; ``"stop"`` ends the fit, and
            refuses the next; ``"rollback"`` puts back the last weights that are known to keep
            the limit: where those of what is estimated alone are not kept, a merge
            among those that RecallCallback tried that does and leaves most of the task's gain (with
            its ``keep_live``, the default of adapters); else the weights of the task's start, and
            what optimizers remembered of them, says so in matrix and curves, and goes on with the
            next task, which takes a copy of the trainable weights and of the optimizers' state (of
            Adam twice the weights); or a function that is called with the Trainer, the module and a
            list of what was not kept. It is told on the terminal and as an alert of Weights &
            Biases in any
            case, and ``recall-lightning fit`` ends with exit code 3.

    Attributes:
        record: All that was measured, a :class:`~recall_lightning.metrics.record.TaskRecord`.

    Raises:
        MisconfigurationException: For a limit of what is not measured; if ``monitor`` is never
            logged or is no score of each dataloader, the dataloaders do not fit the tasks, or no
            validation falls on a task's end.

    Example:
        >>> ForgettingMonitor(monitor="val/acc").higher_is_better
        True
    """

    state_form: ClassVar[type] = MonitorState

    def __init__(
        self,
        monitor: str,
        mode: Literal["auto", "max", "min"] = "auto",
        folder: str | None = None,
        task_epochs: int | list[int] | None = None,
        limits: dict[str, float] | None = None,
        on_limit: OnLimit = "warn",
    ) -> None:
        super().__init__(monitor, mode, task_epochs)
        self.folder = folder
        with _misconfiguration():
            self._limits = Limits(limits or {}, on_limit)
        self.record = TaskRecord(monitor, self.higher_is_better)
        self._report = TaskReport(self.record)
        self._started = 0.0
        self._resumed = False
        self._has_stepped = False  # in this fit
        self._ended_fit: tuple[int, int] | None = None  # the module's id, and the steps until then

    @property
    def exceeded(self) -> list[dict[str, Any]]:
        """What was not kept: ``name``, ``value`` and ``limit``, and when."""
        return list(self._limits.exceeded)

    @property
    def can_roll_back(self) -> bool:
        """True: a row that is rolled back says so."""
        return True

    @property
    def may_roll_back(self) -> bool:
        """Whether limits are set after which the weights of a task's start are put back."""
        return self._limits.rolls_back

    @property
    def matrix(self) -> list[list[float]]:
        """The task matrix so far."""
        return self.record.matrix

    def summary(self) -> dict[str, float]:
        """Return the metrics after the last finished task, by name, as far as they are defined."""
        return self.record.summary()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a folder that is on no local disk."""
        super().setup(trainer, pl_module, stage)
        folder = self.folder or (trainer.loggers[0].save_dir if trainer.loggers else None)
        if stage == "fit" and is_remote(folder):
            raise MisconfigurationException(
                f"ForgettingMonitor writes files to a local disk, and would to {folder}: pass "
                "folder='…', a local one"
            )
        if stage == "fit":
            with _misconfiguration():
                self._limits.check_callbacks(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; say so if there will be nothing to read.

        Raises:
            MisconfigurationException: If the tasks are others than those that a checkpoint's scores
                are of.
        """
        super().on_train_start(trainer, pl_module)
        tasks, resumed = self.known_tasks(trainer), self._resumed
        self._resumed = False
        if resumed and self.record.task_names and tasks is not None:
            names = [self.task_name(trainer, task) for task in range(tasks)]
            self._name(names, self.probes(trainer))
        if not trainer.enable_validation:
            rank_zero_warn(
                "ForgettingMonitor: this fit never validates (limit_val_batches=0, no validation "
                "dataloader, or no validation_step), so there is nothing to read"
                f"{self._limits.unread()}"
            )
        with _misconfiguration():
            going_on = self.visit is not None and not self.task_ended
            self._limits.check_goes_on(in_midst=resumed and going_on)
            if tasks is not None:
                known = [self.task_name(trainer, task) for task in range(tasks)]
                self._limits.check_names([*known, *self.probes(trainer)])
        unread = set(self._limits.by_name) & set(self.probes(trainer))
        if unread and self.record.probes_before is None:
            rank_zero_warn(
                f"ForgettingMonitor: the limit of {first_of(sorted(unread))} is of what was known "
                "before any training, which nobody measured: call trainer.validate(…) before fit"
            )
        self._limits.check_optimizers(trainer, pl_module, stepped=False)
        self._has_stepped = False
        self._started = time.perf_counter()

    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """After a fit's first step, look at what optimizers keep."""
        if not self._has_stepped:
            self._limits.check_optimizers(trainer, pl_module, stepped=True)
            self._has_stepped = True

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Check early that this task's row will be measured."""
        assert self.visit is not None
        visits = self.clock.visits
        self.record.restart_from(self.visit)
        self._fill_missing_rows(trainer, self.visit)
        with _misconfiguration():
            last_epoch = self.last_epoch_of_task(trainer)
            check_validation_falls_on_end(trainer, self.task_name(trainer, task), last_epoch)
        if trainer.num_val_batches:  # empty until the first epoch that validates
            self.check_loaders(trainer, len(trainer.num_val_batches))
        names = [self.task_name(trainer, each) for each in visits]
        boundaries = self.record.boundaries
        came_before = names[len(boundaries) : self.visit]  # this callback
        boundaries += [(0, name) for name in came_before]
        boundaries.append((self.steps_trained(trainer), names[-1]))
        with _misconfiguration():
            self._limits.exceeded = [e for e in self.exceeded if e["visit"] < self.visit]
            self._limits.start_task(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a task's row is measured, go back to a merge that keeps an estimate's limit."""
        super().on_validation_start(trainer, pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not (fitting and self.task_ended) or len(self.matrix) > (self.visit or 0):
            return
        self._limits.go_back_to_a_merge(trainer, pl_module, self._ended(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a task's end that nothing validates, look at what is estimated of it."""
        if self.task_ended and not trainer.enable_validation:
            ended = self._ended(trainer)
            self._limits.go_back_to_a_merge(trainer, pl_module, ended)
            self._limits.judge(trainer, pl_module, {}, ended)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the scores; after a task's end they are its row."""
        super().on_validation_end(trainer, pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking:
            return
        if not fitting and self.task is not None:
            if self._is_outdated(trainer):
                self._measure_again(trainer)
            return
        loaders = len(trainer.num_val_batches)
        tasks = self.known_tasks(trainer)
        if not fitting and tasks is not None and loaders != tasks + len(self.probes(trainer)):
            rank_zero_warn(
                f"ForgettingMonitor: a validation of {loaders} dataloaders is no row of {tasks} "
                "tasks and is left out"
            )
            return
        self.check_loaders(trainer, loaders)
        scores = self.scores(trainer)
        self._name_tasks(trainer, loaders)
        self._find_boundaries(trainer)
        if not fitting:
            self.record.start_with(scores)
            return
        measured = self.record.measured(self.steps_trained(trainer), scores)
        if self.visit is not None and self.task_ended and len(self.matrix) <= self.visit:
            self._fill_missing_rows(trainer, self.visit)
            self.record.finish(measured, self.clock.visits[self.visit])
            self._keep_limits(trainer, pl_module)
            self._stop_clock()
            self._report_task(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures and print the task matrix."""
        super().on_train_end(trainer, pl_module)
        self._stop_clock()
        self._conclude(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at an estimate that came late, or conclude a run that had nothing left to train."""
        super().on_fit_end(trainer, pl_module)
        self._ended_fit = id(pl_module), self.steps_trained(trainer)
        if self.clock.resumed:
            self._conclude(trainer)
        if self.task_ended and self._limits.judge_estimate(
            trainer, pl_module, self._ended(trainer)
        ):
            self._report.again(self.exceeded)

    def _reads(self, trainer: Trainer) -> bool:
        """True in a fit, before any task, and where the last row can be measured again."""
        again = self._is_outdated(trainer) and len(trainer.num_val_batches) == self._row_length
        return again or super()._reads(trainer)

    def _is_outdated(self, trainer: Trainer) -> bool:
        """Whether the last row is not of the weights of a module that is validated after its fit.

        Not of those that the Trainer has read from a checkpoint.
        """
        outdated = self.record.last_is_early or self.record.last_is_retuned
        if self._ended_fit is None or not outdated or trainer.ckpt_path is not None:
            return False
        is_of_last_task = len(self.matrix) == (self.visit or 0) + 1
        return is_of_last_task and id(trainer.lightning_module) == self._ended_fit[0]

    @property
    def _row_length(self) -> int:
        return len(self.record.task_names) + len(self.record.probe_names)

    def _measure_again(self, trainer: Trainer) -> None:
        """Take a validation after a fit for the last row, if it has a row's dataloaders."""
        assert self._ended_fit is not None
        loaders, moved = len(trainer.num_val_batches), moved_loader(self, trainer.val_dataloaders)
        if loaders != self._row_length or moved is not None:
            what = "dataloaders in another order" if moved else f"{loaders} dataloaders"
            rank_zero_warn(
                f"ForgettingMonitor: a validation of {what} is no row of the matrix, whose last "
                f"one stays as it is: pass all {self._row_length} in their order"
            )
            return
        self.record.measure_again(self._ended_fit[1], self.scores(trainer))
        self._report_task(trainer)
        self._report.again(self.exceeded)

    def _conclude(self, trainer: Trainer) -> None:
        self._find_boundaries(trainer)
        if self.visit is not None and self.task_ended:
            self._fill_missing_rows(trainer, self.visit + 1)
        if not self.matrix or not self.record.task_names:
            if trainer.enable_validation:
                rank_zero_warn("ForgettingMonitor: no task was validated at its end")
            return
        self._report.after_fit(trainer, self._resolved_folder(trainer), self.exceeded)

    def on_retuned(self, step: int) -> None:
        """Note in the record and in the files that the last row is of before."""
        if self.record.retune(step):
            self._report.again(self.exceeded)

    def state_dict(self) -> dict[str, Any]:
        """Return everything measured so far, in plain Python."""
        state = {
            **super().state_dict(),
            "record": self.record.state_dict(),
            "exceeded": self.exceeded,
            "start": None if self._limits.start is None else dict(self._limits.start),
            "start_optimizers": self._limits.optimizers,
        }
        return gathered(state, keep=rank_zero_only.rank == 0)  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._resumed = True
        # older checkpoints have none of these
        self._limits.exceeded = list(state_dict.get("exceeded", []))
        start = state_dict.get("start")
        self._limits.start = None if start is None else Snapshot(start)
        self._limits.optimizers = state_dict.get("start_optimizers")
        with _misconfiguration():
            self.record.load_state_dict(state_dict["record"])

    def _find_boundaries(self, trainer: Trainer) -> None:
        """Take over the boundaries that a callback has found so far, where one looks for them."""
        for callback in task_aware_callbacks(trainer):
            if callback.found_boundaries is not None:
                self.record.find(callback.found_boundaries)

    def _keep_limits(self, trainer: Trainer, pl_module: LightningModule | None) -> None:
        """Look whether the last row keeps the limits, and do what is to be done.

        Args:
            trainer: The Trainer.
            pl_module: The model, which still has the weights of the row; None where it has not.
        """
        if not self._limits.by_name:
            return
        lost, summary = self.record.lost(), self.summary()
        old = [value for name, value in lost.items() if name in self.record.task_names]
        values = lost | {"forgetting": summary.get("forgetting", max(old, default=0.0))}
        if math.inf in old:
            values["forgetting"] = math.inf
        row, step = len(self.matrix) - 1, self.steps_trained(trainer)
        ended = EndedTask(self.record.visit_name(row), row, step)
        if self._limits.judge(trainer, pl_module, values, ended):
            self.record.roll_back(step)

    def _ended(self, trainer: Trainer) -> EndedTask:
        assert self.visit is not None
        return EndedTask(self.visit_name(trainer), self.visit, self.steps_trained(trainer))

    def _name_tasks(self, trainer: Trainer, loaders: int) -> None:
        probes = self.probes(trainer)
        names = [self.task_name(trainer, task) for task in range(loaders - len(probes))]
        self._name(names, probes)

    def _name(self, names: list[str], probes: list[str]) -> None:
        with _misconfiguration():
            self.record.name(names, probes)
        with _misconfiguration():
            self._limits.check_names([*names, *probes])
        logged = {*_RESERVED, *(f"{probe}_lost" for probe in probes)}
        reserved = logged.intersection([*names, *probes])
        if reserved:
            raise MisconfigurationException(
                f"ForgettingMonitor: a task is called {reserved.pop()!r}, which is the name of a "
                "metric in the log: call it something else"
            )

    def _fill_missing_rows(self, trainer: Trainer, rows: int) -> None:
        """Take a task's last measurement for its row where no validation fell on its end."""
        if not self.record.measurements:
            return
        while len(self.matrix) < rows:
            visit = len(self.matrix)
            task, row = self.clock.visits[visit], self.record.last_measured_of(visit)
            missing = {"scores": [math.nan] * max(1, len(self.record.task_names))}
            missing["probes"] = [math.nan] * len(self.record.probe_names)
            self.record.finish(row or missing, task, early=True)
            if row:
                self._keep_limits(trainer, None)
            rank_zero_warn(
                f"ForgettingMonitor: no validation came after the end of task {task}; its row of "
                f"the matrix is {'the last one before it' if row else 'empty'}, until you call "
                "trainer.validate(model, …) with all of its loaders before the next task"
            )

    def _report_task(self, trainer: Trainer) -> None:
        name, folder = self.visit_name(trainer), self._resolved_folder(trainer)
        self._report.after_task(trainer, name, folder, self.exceeded)

    def _resolved_folder(self, trainer: Trainer) -> Path | None:
        return Path(self.folder) if self.folder is not None else run_folder(trainer)

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self.record.seconds += now - self._started
        self._started = now


_misconfiguration = partial(misconfiguration, "ForgettingMonitor")
