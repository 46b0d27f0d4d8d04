"""Where a callback's snapshots live, and how they are found again after a resume."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.checkpoint_paths import note_checkpoints
from recall_lightning.callbacks._trainer.loggers import is_remote, run_folder
from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.recall.settings import SnapshotSettings
from recall_lightning.weights.naming import running_statistics
from recall_lightning.weights.snapshot import Snapshot
from recall_lightning.weights.snapshot_file import (
    SUFFIX,
    FileReference,
    FileSnapshot,
    MissingSnapshotError,
    checked_name,
    is_snapshot_file,
)

_SUBFOLDER = "snapshots"
_SUFFIXES = (".ckpt", ".pt")  # of checkpoints


class SnapshotStorage:
    """Stores snapshots in memory, from where they go into checkpoints, or in files beside those.

    Args:
        settings: Which of the two, on which device, and what happens if a file cannot be written.

    Attributes:
        written: The names of the files that this run has written and not yet removed.
        named: Those of them that a checkpoint names.
        elsewhere: Those that a checkpoint names which lies, or lay, where a clean-up does not look:
            they are never removed.
    """

    def __init__(self, settings: SnapshotSettings) -> None:
        self.to = settings.to
        self.on_failed_write = settings.on_failed_write
        self.device = None if settings.device is None else torch.device(settings.device)
        self.written: list[str] = []
        self.named: set[str] = set()
        self.elsewhere: set[str] = set()
        self._verified: set[str] = set()  # written by this process, not on a checkpoint's word
        self._naming: set[str] = set()  # what the checkpoint names that is being saved
        self._folders: list[Path] = []  # where a clean-up looks

    def check(self, trainer: Trainer) -> None:
        """Refuse what can't be stored in files, before training starts.

        Raises:
            MisconfigurationException: For sharded weights, or a folder that is not on a disk.
        """
        if is_sharded(trainer) and self.device is not None:
            raise MisconfigurationException(
                f"snapshots.device={str(self.device)!r} moves whole weights, and "
                "ModelParallelStrategy shards them: leave it out"
            )
        if self.to == "checkpoint":
            return
        if is_sharded(trainer):
            raise MisconfigurationException(
                "snapshots.to='file' writes whole weights, and ModelParallelStrategy shards them: "
                "use snapshots.to='checkpoint'"
            )
        for folder in _roots(trainer):
            if is_remote(folder):
                raise MisconfigurationException(
                    "snapshots.to='file' maps files of a local disk, and checkpoints go to "
                    f"{folder}: use snapshots.to='checkpoint'"
                )
        note_checkpoints(trainer, self._checkpoint_is_at)

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
        self._folders = _known_folders(trainer)
        outcome: Any = None
        if trainer.is_global_zero:
            outcome = self._write(pl_module, folder, f"task_{task}")
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, tuple):
            reference, is_new = FileReference(**outcome[0]), outcome[1]
            everywhere = (folder / reference.name).is_file()
            if trainer.strategy.reduce_boolean_decision(everywhere):
                if is_new and reference.name not in self.written:
                    self.written.append(reference.name)
                    self._verified.add(reference.name)
                return FileSnapshot.map(reference, folder)
            outcome = f"not every process sees {folder / reference.name}"
        if self.on_failed_write == "error":
            raise ValueError(
                f"the snapshot of task {task} could not be stored in {folder} ({outcome}): make "
                "room, or go on with it in memory: snapshots.on_failed_write='keep_in_memory'"
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

    def _write(
        self, pl_module: LightningModule, folder: Path, stem: str
    ) -> tuple[dict[str, Any], bool] | str:
        """Return the file's reference, and whether it was not there before, or what failed.

        One that was there, of the same weights, may be another run's.
        """
        before = {path.name for path in folder.glob(f"*{SUFFIX}")}
        try:
            reference = FileSnapshot.write(pl_module, folder, stem).reference
            return reference.state_dict(), reference.name not in before
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
        failures: list[ValueError] = []
        self._folders = _known_folders(trainer)
        if trainer.ckpt_path is not None and not self._is_searched(str(trainer.ckpt_path)):
            self.elsewhere.add(reference.name)
        for folder in _unique([*_beside(trainer.ckpt_path), _folder(trainer), reference.folder]):
            try:
                found = FileSnapshot.open(reference, folder)
                break
            except ValueError as error:
                failures.append(error)
        if trainer.strategy.reduce_boolean_decision(found is not None):
            assert found is not None
            return found
        # a file that is there and no longer what it was says more than one that is not
        best = [failure for failure in failures if not isinstance(failure, MissingSnapshotError)]
        raise (best or failures or [ValueError("another process cannot read it")])[0]

    def checkpoint_saved(self, kept: Sequence[Snapshot]) -> None:
        """Take note that a checkpoint names the files of these snapshots."""
        self._naming = _names(kept)
        self.named |= self._naming

    def state_dict(self) -> dict[str, Any]:
        """Return the names of files, without their suffix.

        A name in a checkpoint with it says that the checkpoint refers to the file.
        """
        return {
            "written": [name.removesuffix(SUFFIX) for name in self.written],
            "elsewhere": sorted(name.removesuffix(SUFFIX) for name in self.elsewhere),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If a name is none of a snapshot's file.
        """
        written = state_dict.get("written", [])  # older checkpoints have neither
        self.written = [checked_name(stem + SUFFIX) for stem in written]
        elsewhere = state_dict.get("elsewhere", [])
        self.elsewhere = {checked_name(stem + SUFFIX) for stem in elsewhere}
        self._verified &= set(self.written)

    def _checkpoint_is_at(self, path: str) -> None:
        """Leave the files for good which a checkpoint names that no clean-up would find."""
        if not self._is_searched(path):
            self.elsewhere |= self._naming

    def _is_searched(self, path: str) -> bool:
        if is_remote(path) or not path.endswith(_SUFFIXES):
            return False
        place = Path(os.path.realpath(path))
        return any(place.is_relative_to(os.path.realpath(folder)) for folder in self._folders)

    def remove_unused(self, trainer: Trainer, kept: Sequence[Snapshot]) -> None:
        """Remove the files of this run that neither ``kept`` nor any kept checkpoint refers to.

        Where it is not known into which folder checkpoints go, what one may name is left.
        """
        if not self.written:
            return
        folder, known = _folder(trainer), _known_folders(trainer)
        used = _names(kept)
        unused = [name for name in self.written if name not in used]
        if trainer.is_global_zero and unused:
            unused = [name for name in unused if name not in self.elsewhere]
            unused = _unmentioned(unused, known) if known else [*set(unused) - self.named]
            for name in unused:
                with suppress(OSError):
                    if name in self._verified or is_snapshot_file(folder / name):
                        (folder / name).unlink(missing_ok=True)
        unused = trainer.strategy.broadcast(unused)
        self.written = [name for name in self.written if name not in unused]


def _names(snapshots: Sequence[Snapshot]) -> set[str]:
    return {each.reference.name for each in snapshots if isinstance(each, FileSnapshot)}


def _folder(trainer: Trainer) -> Path:
    """Return where this run's snapshots go; must be called on all processes."""
    beside = _checkpoint_folders(trainer)[:1]
    folder = beside[0] if beside else run_folder(trainer) or trainer.default_root_dir
    return Path(folder, _SUBFOLDER).absolute()


def _checkpoint_folders(trainer: Trainer) -> list[str]:
    folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder) for folder in folders if folder]


def _known_folders(trainer: Trainer) -> list[Path]:
    """Return where a clean-up looks for checkpoints; must be called on all processes."""
    logged = run_folder(trainer)
    return _unique([*_checkpoint_folders(trainer), *([logged] if logged else [])])


def _roots(trainer: Trainer) -> list[str]:
    """Return where checkpoints and snapshots will go, before Lightning has made out the folders."""
    root = (trainer.loggers[0].save_dir if trainer.loggers else None) or trainer.default_root_dir
    folders = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder or root) for folder in folders] or [str(root)]


def _beside(checkpoint: str | Path | None) -> list[Path]:
    if checkpoint is None or is_remote(checkpoint):
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
    for path in {path for folder in folders for path in _checkpoints_in(folder)}:
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


def _checkpoints_in(folder: Path) -> Iterator[Path]:
    """Find checkpoints anywhere in a folder, behind links to folders too."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(where)
        if place in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(place)
        yield from (Path(where, file) for file in files if file.endswith(_SUFFIXES))
