"""Where a callback's snapshots live, and how they are found again after a resume."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import run_folder
from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.checks import check_choice
from recall_lightning.weights.naming import running_statistics
from recall_lightning.weights.snapshot import Snapshot
from recall_lightning.weights.snapshot_file import FileReference, FileSnapshot

_SUBFOLDER = "snapshots"


class SnapshotStorage:
    """Stores snapshots in memory, from where they go into checkpoints, or in files beside those.

    Args:
        to: ``"checkpoint"`` or ``"file"``.
        on_failed_write: Where a file cannot be written, ``"keep_in_memory"`` or ``"error"``.
        device: Where snapshots in memory live; None keeps each copy beside its weight.

    Attributes:
        written: The names of the files that this run has written and not yet removed.

    Raises:
        ValueError: For arguments of other values.
    """

    def __init__(
        self,
        to: Literal["checkpoint", "file"],
        on_failed_write: Literal["keep_in_memory", "error"],
        device: torch.device | None,
    ) -> None:
        check_choice("snapshot_to", to, "checkpoint", "file")
        check_choice("on_failed_write", on_failed_write, "keep_in_memory", "error")
        self.to = to
        self.on_failed_write = on_failed_write
        self.device = device
        self.written: list[str] = []

    def check(self, trainer: Trainer) -> None:
        """Refuse what can't be stored in files, before training starts.

        Raises:
            MisconfigurationException: For sharded weights, or a folder that is not on a disk.
        """
        if is_sharded(trainer) and self.device is not None:
            raise MisconfigurationException(
                f"snapshot_device={str(self.device)!r} moves whole weights, and "
                "ModelParallelStrategy shards them: leave it out"
            )
        if self.to == "checkpoint":
            return
        if is_sharded(trainer):
            raise MisconfigurationException(
                "snapshot_to='file' writes whole weights, and ModelParallelStrategy shards them: "
                "use snapshot_to='checkpoint'"
            )
        folder = _checkpoint_folders(trainer)[:1]
        if folder and "://" in folder[0]:
            raise MisconfigurationException(
                "snapshot_to='file' maps files of a local disk, and checkpoints go to "
                f"{folder[0]}: use snapshot_to='checkpoint'"
            )

    def take(self, trainer: Trainer, pl_module: LightningModule, task: int) -> Snapshot:
        """Take the snapshot of a task's start.

        Must be called on all processes.

        Raises:
            ValueError: If there is nothing to copy or it is not finite; if it cannot be written and
                that is an error.
        """
        if self.to == "checkpoint":
            return self._in_memory(trainer, pl_module)
        folder = _folder(trainer)
        outcome: Any = None
        if trainer.is_global_zero:
            outcome = self._write(pl_module, folder, f"task_{task}")
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, dict):
            reference = FileReference(**outcome)
            everywhere = (folder / reference.name).is_file()
            if trainer.strategy.reduce_boolean_decision(everywhere):
                if reference.name not in self.written:
                    self.written.append(reference.name)
                return FileSnapshot.map(reference, folder)
            outcome = f"not every process sees {folder / reference.name}"
        if self.on_failed_write == "error":
            raise ValueError(
                f"the snapshot of task {task} could not be stored in {folder}: {outcome}; make "
                "room, or go on with it in memory: on_failed_write='keep_in_memory'"
            )
        rank_zero_warn(
            f"the snapshot of task {task} could not be stored in {folder}: {outcome}; it is kept "
            "in memory and goes into checkpoints"
        )
        return self._in_memory(trainer, pl_module)

    def _in_memory(self, trainer: Trainer, pl_module: LightningModule) -> Snapshot:
        snapshot = Snapshot.take(pl_module, self.device)
        if trainer.world_size > 1 and not is_sharded(trainer):
            # each process has running statistics of its own, and a checkpoint those of the first
            for name in running_statistics(pl_module) & snapshot.keys():
                snapshot[name].copy_(trainer.strategy.broadcast(snapshot[name].cpu()))
        return snapshot

    def _write(self, pl_module: LightningModule, folder: Path, stem: str) -> dict[str, Any] | str:
        try:
            return FileSnapshot.write(pl_module, folder, stem).reference.state_dict()
        except OSError as error:
            return f"{error.strerror or error}"

    def find(self, trainer: Trainer, reference: FileReference) -> FileSnapshot:
        """Find a snapshot's file beside the checkpoint that training was resumed from.

        It is looked for in the folder of snapshots beside the checkpoint and one above, in that of
        this run, and where it was written.

        Raises:
            ValueError: If none of these holds it whole and unaltered.
        """
        found = None
        failures = []
        for folder in _unique([*_beside(trainer.ckpt_path), _folder(trainer), reference.folder]):
            try:
                found = FileSnapshot.open(reference, folder)
                break
            except ValueError as error:
                failures.append(str(error))
        if trainer.strategy.reduce_boolean_decision(found is not None):
            assert found is not None
            return found
        # a file that is there and no longer what it was says more than one that is not
        best = [failure for failure in failures if not failure.endswith("is missing")] or failures
        raise ValueError(best[0] if best else "another process cannot read it")

    def remove_unused(self, trainer: Trainer, kept: Sequence[Snapshot]) -> None:
        """Remove the files of this run that neither ``kept`` nor any kept checkpoint refers to."""
        if not self.written:
            return
        folder = _folder(trainer)
        used = {each.reference.name for each in kept if isinstance(each, FileSnapshot)}
        unused = [name for name in self.written if name not in used]
        if trainer.is_global_zero and unused:
            checkpoints = [folder.parent, *map(Path, _checkpoint_folders(trainer))]
            unused = _unmentioned(unused, _unique(checkpoints))
            for name in unused:
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
        unused = trainer.strategy.broadcast(unused)
        self.written = [name for name in self.written if name not in unused]


def _folder(trainer: Trainer) -> Path:
    """Return where this run's snapshots go; must be called on all processes."""
    beside = _checkpoint_folders(trainer)[:1]
    return Path(
        beside[0] if beside else run_folder(trainer) or trainer.default_root_dir, _SUBFOLDER
    )


def _checkpoint_folders(trainer: Trainer) -> list[str]:
    folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder) for folder in folders if folder]


def _beside(checkpoint: str | Path | None) -> list[Path]:
    if checkpoint is None:
        return []
    folder = Path(checkpoint).absolute().parent
    return [folder / _SUBFOLDER, folder.parent / _SUBFOLDER]


def _unique(folders: Iterable[str | Path]) -> list[Path]:
    return list(dict.fromkeys(Path(folder) for folder in folders))


def _unmentioned(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return the names that no checkpoint in the folders mentions; none if one can't be read.

    A checkpoint is a zip archive, whose entry ``data.pkl`` holds the names as they are; that of a
    sharded model is a folder with such an archive in it. Nothing is unpickled.
    """
    left = list(names)
    for path in {
        p for folder in folders for p in folder.rglob("*") if p.suffix in (".ckpt", ".pt")
    }:
        if path.is_dir():
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                inside = [name for name in archive.namelist() if name.endswith("data.pkl")]
                content = b"".join(map(archive.read, inside))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (zipfile.BadZipFile, OSError):
            return []
        left = [name for name in left if name.encode() not in content]
    return left
