"""An output folder that appears whole or not at all, whenever the process ends."""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside ``target``; rename it at the end.

    When the block ends without an exception everything is flushed to the disk, then renamed.
    Otherwise ``target`` is as it was and nothing is left, parents made for it included. A killed
    process leaves its temporary folder, which the next one for this target removes: a lock, held
    as long as a process lives, tells it from the folder of one that is still going.

    Args:
        target: The folder to make: not there yet, or empty. Missing parents are made.

    Yields:
        The temporary folder.

    Raises:
        ValueError: If ``target`` exists, or a folder beside it cannot be made; before the block.
            Also if ``target`` has appeared while the block ran.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_folder(Path(parent, "out")) as folder:
        ...         _ = (folder / "a.txt").write_text("a")
        ...         before = os.path.exists(f"{parent}/out")
        ...     before, os.listdir(parent), os.listdir(f"{parent}/out")
        (False, ['out'], ['a.txt'])
    """
    target = Path(os.path.abspath(target))
    _remove_leftovers(target)
    refuse_existing(target)
    made = _make_parents(target)
    try:
        holder, lock = _locked_folder(target)
        try:
            content = holder / target.name
            content.mkdir()
            yield content
            _flush(content)
            _publish(content, target)
            for parent in (target.parent, *(folder.parent for folder in made)):
                flush_entry(parent)
        finally:
            shutil.rmtree(holder, ignore_errors=True)
            os.close(lock)
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else's files have come in
                folder.rmdir()
        raise


def refuse_existing(target: Path) -> None:
    """Check that a folder can be made at ``target``: nothing is there, or an empty folder.

    Raises:
        ValueError: If something is.
    """
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink() or any(target.iterdir()):
        raise ValueError(f"{target} exists already: remove it or choose another output folder")
    if target.is_mount():
        raise ValueError(
            f"{target} is a mount point, which no rename replaces: name a folder in it"
        )


def _make_parents(target: Path) -> list[Path]:
    """Make the missing parents and return them, outermost first."""
    missing = [folder for folder in reversed(target.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_make(target.parent, error) from error
    return missing


def _locked_folder(target: Path) -> tuple[Path, int]:
    """Make a uniquely named folder beside the target, with a lock in it that is ours."""
    while True:
        try:
            holder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
            lock = _lock(holder)
        except OSError as error:
            raise _cannot_make(target.parent, error) from error
        if lock is not None:
            return holder, lock


def _lock(holder: Path) -> int | None:
    """Lock a temporary folder; None if another process holds the lock or removed the folder.

    A folder that was just made may be taken for a leftover before its maker has locked it. Then
    the file that the maker locks is gone from the folder, which is why that is looked at last.
    """
    try:
        lock = os.open(holder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(holder / _LOCK)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary folders for this target whose process is dead."""
    if not target.parent.is_dir():
        return
    ours = re.compile(re.escape(_prefix(target)) + "[a-z0-9_]{8}")
    for folder in target.parent.iterdir():
        if not ours.fullmatch(folder.name):
            continue
        with suppress(OSError):  # another user's
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _publish(content: Path, target: Path) -> None:
    try:
        content.rename(target)  # replaces an empty folder, and nothing else
    except OSError as error:
        raise ValueError(
            f"{target} could not be put in place ({error.strerror}), so nothing was written: "
            "remove it if it has appeared meanwhile, or choose another output folder"
        ) from error


def _flush(folder: Path) -> None:
    """Flush all files and folders below, and the folder itself, to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            flush_entry(Path(parent, name))
        flush_entry(Path(parent))


def flush_entry(path: Path) -> None:
    """Flush one file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems flush files only.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise
    finally:
        os.close(descriptor)


def _cannot_make(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"no folder can be made in {folder} ({error.strerror}): choose another output folder"
    )
