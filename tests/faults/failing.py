"""Training whose n-th write fails."""

import builtins
import errno
import functools
import io
import os
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from recall_lightning import RecallCallback
from recall_lightning.recall.settings import SnapshotSettings
from tests.support.callbacks import FEW
from tests.support.resumed_runs import differences, stream, train

CALLS = ["write", "fsync", "replace", "rename", "mkdir"]


class FailingDisk:
    """Lets the n-th write of this process fail as on a full disk.

    A write is a file opened for writing, or anything of ``CALLS``, whoever does it. ``writes``
    holds of each what it is and where it comes from.
    """

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.writes = []
        self.failed = None

    def write(self, what):
        self.writes.append((what, place_of_write()))
        if len(self.writes) == self.fail_at:
            self.failed = what
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def calls(self, name):
        function = getattr(os, name)

        @functools.wraps(function)
        def checked(*args, **kwargs):
            self.write(name)
            return function(*args, **kwargs)

        return checked

    def open(self, file, mode="r", *args, _open=builtins.open, **kwargs):
        if set(mode) & set("wxa") and not str(file).startswith("/dev"):
            self.write(f"open {Path(file).suffix}")
        return _open(file, mode, *args, **kwargs)

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        for name in CALLS:
            self._patch.setattr(os, name, self.calls(name))
        for module in (builtins, io):
            self._patch.setattr(module, "open", self.open)
        return self

    def __exit__(self, *_):
        self._patch.undo()


def place_of_write():
    """Return the lines of Lightning and the package that led to a write, to whoever asked for it.

    Those are the innermost ones, up to the first in a file that is not about writing as such.
    """
    frame, lines = sys._getframe(2), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if {"lightning", "recall_lightning"} & set(path.parts):
            lines.append(f"{path.name}:{frame.f_lineno}")
            if path.name not in ("atomic.py", "cloud_io.py", "torch_io.py"):
                break
        frame = frame.f_back
    return lines


def run(folder, fail_at=None):
    """Train from the last checkpoint if there is one; return the result, or None, and the disk."""
    in_files = SnapshotSettings(to="file")
    recall = RecallCallback(every=3, rule="rbf", samples=FEW, snapshots=in_files)
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=4, save_last=True)
    with warnings.catch_warnings(), FailingDisk(fail_at) as disk:
        warnings.simplefilter("ignore")
        try:
            options = {"monitor_folder": folder, "logger": False}  # a logger's writes are its own
            return train([recall, checkpoints], stream(), "last", **options), disk
        except OSError:
            return None, disk


def trial(folder, fail_at, whole):
    """Let one write fail; return what failed, whether the run went on, and what differs."""
    folder.mkdir(parents=True)
    result, disk = run(folder, fail_at)
    went_on = result is not None
    if not went_on:
        result, _ = run(folder)
    found = differences(whole, result)
    left = [path.name for path in folder.rglob("*") if ".partial" in path.name]
    return disk.failed, went_on, found + [f"{name} is left" for name in left]
