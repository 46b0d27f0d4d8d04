"""How much of every task a model knows, task after task."""

import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from recall_lightning import metrics
from recall_lightning.callbacks.loggers import (
    log_figure,
    log_scalars,
    log_table,
    plot_against,
    run_folder,
)
from recall_lightning.callbacks.task_aware import TaskAwareCallback

FORGETTING_VARIANT: metrics.ForgettingVariant = "since_trained"

_LOWER_IS_BETTER = {
    "loss",
    "perplexity",
    "ppl",
    "error",
    "err",
    "nll",
    "bits",
    "mse",
    "mae",
    "rmse",
}
_LOWER_IS_BETTER |= {"wer", "cer", "fid"}
_HIGHER_IS_BETTER = {
    "acc",
    "accuracy",
    "f1",
    "auc",
    "auroc",
    "precision",
    "recall",
    "bleu",
    "rouge",
}
_HIGHER_IS_BETTER |= {"iou", "dice", "score", "map", "r2", "match"}
_LOWER_IS_BETTER |= {"entropy"}
_RESERVED = {"task", "matrix", "matrix_image", "average", "backward_transfer", "forward_transfer"}
_RESERVED |= {"forgetting", "plasticity"}


class ForgettingMonitor(TaskAwareCallback):
    """Fill a task matrix from your own validation metric, and log what was forgotten.

    Give the Trainer one validation dataloader a task, in the order of the tasks and all of them
    from the start. The validation at each task's end becomes a row of the matrix: the score on
    every task. The untrained model's row, which forward transfer needs, comes from
    ``trainer.validate(…)`` before ``fit``. (The sanity check is not read: Lightning drops what it
    logs.)

    Logged after each task, against ``continual/task`` (tasks trained): ``continual/average``,
    ``continual/backward_transfer``, ``continual/forward_transfer``, ``continual/forgetting`` (the
    maximum runs from the task's own training on), ``continual/plasticity`` and
    ``continual/<task name>``; in Weights & Biases also the matrix as a table and an image. Into the
    run's folder go ``task_matrix.json``, ``task_matrix.png`` and ``curves.png``. Nothing here knows
    how the model is trained: the callback is of use without any other of ours.

    Args:
        monitor: The metric's name as ``validation_step`` logs it, without Lightning's
            ``/dataloader_idx_N``; ``{idx}`` in it stands for the dataloader's index where the
            module puts that into the name itself, as in ``"val_{idx}/acc"``.
        mode: ``"max"`` if higher is better, ``"min"`` if lower; ``"auto"`` tells it from the name.
        folder: Where the files go; by default into the first logger's folder, and nowhere without
            a logger.
        task_epochs: See :class:`~recall_lightning.callbacks.task_aware.TaskAwareCallback`; what
            another callback of the Trainer was given counts here too.

    Attributes:
        matrix: A row a finished task, each with a score a validation dataloader.
        before: The untrained model's row, or None.
        measurements: A dict a validation: ``step`` (optimizer steps so far) and ``scores``.

    Raises:
        MisconfigurationException: If ``monitor`` is never logged, the dataloaders do not fit the
            tasks, or no validation falls on a task's end.

    Example:
        >>> ForgettingMonitor(monitor="val/acc").higher_is_better
        True
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["auto", "max", "min"] = "auto",
        folder: str | None = None,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(task_epochs)
        self.monitor = monitor
        self.higher_is_better = _direction(monitor, mode)
        self.folder = folder
        self.matrix: list[list[float]] = []
        self.before: list[float] | None = None
        self.measurements: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._boundaries: list[tuple[int, str]] = []
        self._task_names: list[str] = []
        self._started = 0.0

    def summary(self) -> dict[str, float]:
        """Return the metrics after the last finished task, by name, as far as they are defined.

        They are those of :mod:`recall_lightning.metrics.functional`.

        Example:
            >>> monitor = ForgettingMonitor("val/loss")
            >>> monitor.matrix = [[1.0, 4.0], [1.5, 1.25]]
            >>> monitor.summary()["forgetting"], monitor.summary()["plasticity"]
            (0.5, 1.125)
        """
        matrix = _padded(self.matrix)
        direction = {"higher_is_better": self.higher_is_better}
        functions: dict[str, Callable[..., Tensor]] = {
            "average": metrics.average,
            "backward_transfer": metrics.backward_transfer,
            "forgetting": partial(metrics.forgetting, variant=FORGETTING_VARIANT),
            "plasticity": metrics.plasticity,
        }
        if self.before is not None:
            functions["forward_transfer"] = partial(
                metrics.forward_transfer, baseline=_padded([self.before, matrix[0].tolist()])[0]
            )
        values = {}
        for name, function in functions.items():
            with suppress(ValueError):  # it reads a score that was not measured
                values[name] = float(function(matrix, **direction))
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started = time.perf_counter()

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Check early that this task's row will be measured."""
        del self.matrix[task:]
        self._boundaries = self._boundaries[:task]
        if task == 0:
            self.measurements = [m for m in self.measurements if m["step"] == 0 and self.before]
        self._fill_missing_rows(task)
        self._check_validation_falls_on_task_end(trainer, task)
        if trainer.num_val_batches:  # empty until the first epoch that validates
            self._check_loaders(trainer, len(trainer.num_val_batches))
        self._boundaries.append((self.steps_trained(trainer), self.task_name(trainer, task)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the scores; after a task's end they are its row."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (not fitting and self.task is not None):
            return
        loaders = len(trainer.num_val_batches)
        tasks = self.known_tasks(trainer)
        if not fitting and tasks not in (None, loaders):
            rank_zero_warn(
                f"ForgettingMonitor: a validation of {loaders} dataloaders is no row of {tasks} "
                "tasks and is left out"
            )
            return
        self._check_loaders(trainer, loaders)
        scores = self._read(trainer, loaders)
        self._name_tasks(trainer, loaders)
        if not fitting:
            self.before = scores
            self.measurements = [{"step": 0, "scores": scores}]
            return
        self.measurements.append({"step": self.steps_trained(trainer), "scores": scores})
        if self.task_ended and len(self.matrix) == self.task:
            self.matrix.append(scores)
            self._report(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures and print the task matrix."""
        super().on_train_end(trainer, pl_module)
        self._stop_clock()
        if self.task is not None and self.task_ended:
            self._fill_missing_rows(self.task + 1)
        if not self.matrix or not self._task_names:
            rank_zero_warn("ForgettingMonitor: no task was validated at its end, nothing to show")
            return
        folder = self._resolve_folder(trainer)
        if not trainer.is_global_zero:
            return
        trainer.print(self.table())
        if folder is not None:
            self._write_json(folder)
            self._write_figures(trainer, folder)

    def table(self) -> str:
        """Return the task matrix as text: a row a trained task, a column a task.

        Example:
            >>> monitor = ForgettingMonitor("val/acc")
            >>> monitor.matrix, monitor._task_names = [[0.9, 0.1], [0.5, 0.8]], ["a", "b"]
            >>> print(monitor.table())
            val/acc      a      b
            after a  0.900  0.100
            after b  0.500  0.800
        """
        rows = [("before", self.before)] if self.before else []
        rows += [(f"after {self._task_names[i]}", row) for i, row in enumerate(self.matrix)]
        first = max(len(self.monitor), *(len(label) for label, _ in rows))
        widths = [max(6, len(name) + 1) for name in self._task_names]
        lines = [[f"{n:>{w}}" for n, w in zip(self._task_names, widths, strict=True)]]
        lines += [[f"{v:>{w}.3f}" for v, w in zip(row, widths, strict=False)] for _, row in rows]
        labels = [self.monitor, *(label for label, _ in rows)]
        return "\n".join(
            " ".join([f"{label:<{first}}", *cells])
            for label, cells in zip(labels, lines, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything measured so far, in plain Python."""
        return {
            **super().state_dict(),
            "matrix": self.matrix,
            "before": self.before,
            "measurements": self.measurements,
            "seconds": self.seconds,
            "boundaries": self._boundaries,
            "task_names": self._task_names,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.matrix = state_dict["matrix"]
        self.before = state_dict["before"]
        self.measurements = state_dict["measurements"]
        self.seconds = state_dict["seconds"]
        self._boundaries = [(step, name) for step, name in state_dict["boundaries"]]
        self._task_names = state_dict["task_names"]

    def _read(self, trainer: Trainer, loaders: int) -> list[float]:
        """Read this validation's scores; with several loaders Lightning adds the loader's index.

        Only the form that belongs to the number of loaders is read: the other one may be left from
        an earlier fit.
        """
        logged = trainer.callback_metrics
        pattern = f"{self.monitor}/dataloader_idx_{{idx}}" if loaders > 1 else self.monitor
        if "{idx}" in self.monitor:
            pattern = self.monitor
        keys = [pattern.replace("{idx}", str(index)) for index in range(loaders)]
        missing = [i for i, key in enumerate(keys) if key not in logged]
        if missing:
            names = sorted({str(key).partition("/dataloader_idx_")[0] for key in logged})
            raise MisconfigurationException(
                f"ForgettingMonitor: monitor={self.monitor!r} was not logged for validation "
                f"dataloader {missing[0]}; logged were {', '.join(names) or 'no metrics'}"
            )
        return [float(logged[key]) for key in keys]

    def _name_tasks(self, trainer: Trainer, loaders: int) -> None:
        self._task_names = [self.task_name(trainer, task) for task in range(loaders)]
        reserved = _RESERVED.intersection(self._task_names)
        if reserved:
            raise MisconfigurationException(
                f"ForgettingMonitor: a task is called {reserved.pop()!r}, which is the name of a "
                "metric in the log: call it something else"
            )

    def _fill_missing_rows(self, rows: int) -> None:
        """Take a task's last measurement for its row where no validation fell on its end."""
        while len(self.matrix) < rows:
            task, row = len(self.matrix), [math.nan] * max(1, len(self._task_names))
            measured = len(self._boundaries) == task + 1 and bool(self.measurements)
            measured = measured and self.measurements[-1]["step"] > self._boundaries[task][0]
            if measured:
                row = self.measurements[-1]["scores"]
            self.matrix.append(row)
            rank_zero_warn(
                f"ForgettingMonitor: no validation came after the end of task {task}; its row of "
                f"the matrix is {'the last one before it' if measured else 'empty'}"
            )

    def _check_loaders(self, trainer: Trainer, loaders: int) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        tasks = self.known_tasks(trainer)
        if tasks is not None and loaders != tasks:
            raise MisconfigurationException(
                f"ForgettingMonitor: {tasks} tasks need a validation dataloader each, in their "
                f"order, and there are {loaders}"
            )
        if self.task is not None and loaders <= self.task:
            raise MisconfigurationException(
                f"ForgettingMonitor: task {self.task} (counted from 0) needs "
                f"{self.task + 1} validation dataloaders or more, one a task in their order, and "
                f"there are {loaders}: pass val_dataloaders=[one of each task] to every fit (a fit "
                "is a task, unless a TaskStream or task_epochs says otherwise)"
            )

    def _check_validation_falls_on_task_end(self, trainer: Trainer, task: int) -> None:
        every, batches = trainer.check_val_every_n_epoch, trainer.num_training_batches
        interval = trainer.val_check_batch
        last_epoch = self.last_epoch_of_task(trainer)
        name = self.task_name(trainer, task)
        if every is not None and last_epoch is not None and (last_epoch + 1) % every:
            raise MisconfigurationException(
                f"ForgettingMonitor: task {name!r} ends with epoch {last_epoch} (from 0), and "
                f"check_val_every_n_epoch={every} does not validate then: set it to 1"
            )
        inside = every is not None and interval not in (None, math.inf) and batches != math.inf
        if inside and batches % interval:  # type: ignore[operator]
            raise MisconfigurationException(
                f"ForgettingMonitor: task {name!r} has {batches} batches an epoch, and validation "
                f"every {interval} of them (val_check_interval={trainer.val_check_interval}) does "
                "not fall on the last: choose an interval that divides it"
            )

    def _report(self, trainer: Trainer) -> None:
        """Log, print and write what is known after a task."""
        self._stop_clock()
        names, row, summary = self._task_names, self.matrix[-1], self.summary()
        plot_against(trainer, "continual/*", "continual/task")
        scalars = {f"continual/{name}": value for name, value in summary.items()}
        scalars |= {f"continual/{name}": v for name, v in zip(names, row, strict=True)}
        log_scalars(trainer, scalars | {"continual/task": float(len(self.matrix))})
        folder = self._resolve_folder(trainer)
        if not trainer.is_global_zero:
            return
        rows = [[names[i], *scores] for i, scores in enumerate(self.matrix)]
        log_table(trainer, "continual/matrix", ["after", *names], rows)
        if trainer.loggers:
            log_figure(trainer, "continual/matrix_image", self._matrix_figure())
        if folder is not None:
            self._write_json(folder)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in summary.items())
        trainer.print(f"after {names[len(self.matrix) - 1]!r}: {shown}")

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now

    def _resolve_folder(self, trainer: Trainer) -> Path | None:
        return Path(self.folder) if self.folder is not None else run_folder(trainer)

    def _matrix_figure(self) -> Any:
        from recall_lightning.figures import task_matrix_figure

        rows = [self.before, *self.matrix] if self.before is not None else self.matrix
        labels = ["before training"] if self.before is not None else []
        labels += [f"after {self._task_names[i]}" for i in range(len(self.matrix))]
        return task_matrix_figure(
            _padded(rows), self._task_names, self.monitor, self.higher_is_better, labels
        )

    def _write_figures(self, trainer: Trainer, folder: Path) -> None:
        from recall_lightning.figures import curves_figure, save

        save(self._matrix_figure(), folder / "task_matrix.png")
        marks: dict[str, list[int]] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TaskAwareCallback):
                marks |= callback.marked_steps
        curves = curves_figure(
            [measured["step"] for measured in self.measurements],
            _padded([measured["scores"] for measured in self.measurements]),
            self._task_names,
            self.monitor,
            self._boundaries,
            marks,
        )
        save(curves, folder / "curves.png")

    def _write_json(self, folder: Path) -> None:
        """Write ``task_matrix.json`` whole or not at all."""
        content = {
            "monitor": self.monitor,
            "mode": "max" if self.higher_is_better else "min",
            "tasks": self._task_names,
            "before": _without_nan(self.before),
            "matrix": [_without_nan(row) for row in self.matrix],
            "metrics": self.summary(),
            "forgetting_variant": FORGETTING_VARIANT,
            "seconds": self.seconds,
            "measurements": [
                {**measured, "scores": _without_nan(measured["scores"])}
                for measured in self.measurements
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "task_matrix.json.partial"
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, folder / "task_matrix.json")


def _direction(monitor: str, mode: str) -> bool:
    if mode in ("max", "min"):
        return mode == "max"
    if mode != "auto":
        raise MisconfigurationException(f"mode={mode!r} must be 'max', 'min' or 'auto'")
    # words of snake_case, CamelCase and paths, digits apart: val/MulticlassAccuracy, acc1, f1
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", monitor)}
    words |= {word.lower() for word in re.findall(r"[A-Za-z]+\d", monitor)}
    lower, higher = bool(words & _LOWER_IS_BETTER), bool(words & _HIGHER_IS_BETTER)
    if lower == higher:
        raise MisconfigurationException(
            f"ForgettingMonitor: whether a higher {monitor!r} is better cannot be told from its "
            "name: pass mode='max' or mode='min'"
        )
    return higher


def _without_nan(scores: list[float] | None) -> list[float | None] | None:
    """Replace NaN, which JSON does not know, by None."""
    return None if scores is None else [None if math.isnan(score) else score for score in scores]


def _padded(rows: list[list[float]]) -> torch.Tensor:
    """Stack rows of scores; NaN where a task's dataloader did not exist yet."""
    width = max(len(row) for row in rows)
    return torch.tensor(
        [row + [math.nan] * (width - len(row)) for row in rows], dtype=torch.float64
    )
