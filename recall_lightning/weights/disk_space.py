"""Whether a disk has room."""

import errno
import os
import shutil
from pathlib import Path


def check_space(out: Path, needed: int) -> None:
    """Tell a full disk before any work; that it fills up meanwhile shows when it does."""
    if shutil.disk_usage(existing_parent(out)).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def existing_parent(out: Path) -> Path:
    """Return the innermost folder around ``out`` that exists."""
    return next(folder for folder in Path(os.path.abspath(out)).parents if folder.is_dir())
