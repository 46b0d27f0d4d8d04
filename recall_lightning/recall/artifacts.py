"""Weights handed to a logger that keeps versions of files, with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import keeps_artifacts, log_artifact
from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.metrics.task_matrix_file import plain_json
from recall_lightning.weights.snapshot import Snapshot
from recall_lightning.weights.snapshot_file import FileSnapshot

LogArtifacts = bool | Literal["weights", "snapshots"]

_OF_A_MERGE = ("keep", "plasticity", "loss", "divergence", "quadratic_forgetting", "coefficient")


class TaskArtifacts:
    """Logs the weights after each task, and the files of snapshots, as artifacts of W&B.

    Args:
        what: ``"weights"``, ``"snapshots"``, True for both as far as snapshots are files, or False.
    """

    def __init__(self, what: LogArtifacts) -> None:
        self._weights = what in (True, "weights")
        self._snapshots = what in (True, "snapshots")
        self._what = what
        self._done: int | None = None  # the last visit whose weights need no logging any more
        self._waiting: Mapping[str, Any] | None = None  # what is known of a task

    def check(self, trainer: Trainer, in_files: bool) -> None:
        """Refuse what nothing would come of.

        Args:
            trainer: The Trainer.
            in_files: Whether snapshots are files.

        Raises:
            MisconfigurationException: Naming what is missing.
        """
        if not self._what:
            return
        if not keeps_artifacts(trainer):
            raise MisconfigurationException(
                f"log_artifacts={self._what!r}, and the Trainer has no logger that takes "
                "artifacts: give it a WandbLogger, or leave log_artifacts out"
            )
        if is_sharded(trainer):
            raise MisconfigurationException(
                f"log_artifacts={self._what!r} writes whole weights, and ModelParallelStrategy "
                "shards them: leave it out"
            )
        if self._what == "snapshots" and not in_files:
            raise MisconfigurationException(
                "log_artifacts='snapshots' logs snapshots' files, and they are in memory: set "
                "snapshots=SnapshotSettings(to='file')"
            )

    def start_task(self, trainer: Trainer, snapshot: Snapshot, known: Mapping[str, Any]) -> None:
        """Log the file of a task's snapshot.

        Args:
            trainer: The Trainer.
            snapshot: The task's own.
            known: What is known of the task: its number, name and visit, and the step.
        """
        self._done = None
        if not (self._snapshots and isinstance(snapshot, FileSnapshot)):
            return
        reference = snapshot.reference
        path = Path(reference.folder) / reference.name
        about = {**known, "checksum": reference.checksum, "weights": reference.weights}
        self._log(trainer, path, "snapshot", "snapshot", about)

    def end_task(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        history: Sequence[Mapping[str, Any]],
        known: Mapping[str, Any],
        wait: bool = False,
    ) -> None:
        """Log the weights after a task, once nothing puts them back any more.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            history: That of the callback.
            known: As in :meth:`start_task`.
            wait: Whether another callback may still do so in this hook, so that they are to be
                logged by :meth:`log_waiting`.
        """
        if not self._weights or self._done == known["visit"]:
            return
        self._waiting = known
        if not wait:
            self.log_waiting(trainer, pl_module, history)

    def log_waiting(
        self, trainer: Trainer, pl_module: LightningModule, history: Sequence[Mapping[str, Any]]
    ) -> None:
        """Log what had to wait, before anything else is trained; the arguments are those above."""
        known, self._waiting = self._waiting, None
        if known is None or self._done == known["visit"]:
            return
        self._done = known["visit"]
        records = [record for record in history if record["visit"] == known["visit"]]
        last = records[-1] if records else {}
        about = {"merges": len(records), **{n: last[n] for n in _OF_A_MERGE if n in last}}
        if not trainer.is_global_zero:
            return
        try:
            with TemporaryDirectory() as folder:
                name = FileSnapshot.write(pl_module, Path(folder), "weights").reference.name
                self._log(trainer, Path(folder, name), "weights", "model", {**known, **about})
        except (OSError, ValueError) as error:
            rank_zero_warn(
                f"RecallCallback: the weights after {known['name']!r} were not logged as an "
                f"artifact: {error}"
            )

    def leave_out(self, visit: int | None) -> None:
        """Log no weights of a task that was rolled back."""
        self._done = visit

    def _log(
        self, trainer: Trainer, path: Path, name: str, kind: str, about: Mapping[str, Any]
    ) -> None:
        aliases = [f"visit-{about['visit']}"]
        log_artifact(trainer, path, name, kind, plain_json(dict(about)), aliases)
