"""Files and folders that appear whole or not at all, whenever the process ends.

Both are made inside a folder of a temporary name beside their place, flushed to the disk and then
renamed. A killed process leaves its temporary folder, which the next one for the same target
removes: a lock, held as long as a process lives, tells it from the folder of one still going.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_LOCK = "lock"


class AtomicFile:
    """A file that is being written; what :func:`atomic_file` yields.

    Attributes:
        target: Where it is going to be: another name in that folder may be set until the end.
    """

    def __init__(self, target: Path, descriptor: int) -> None:
        self.target = target
        self._descriptor = descriptor

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        write_all(self._descriptor, memoryview(content))

    def flush(self) -> None:
        """Nothing: no bytes are held back."""


@contextmanager
def atomic_file(target: Path, nbytes: int = 0) -> Iterator[AtomicFile]:
    """Write a file that appears under its name, in place of one that is there, at the end.

    When the block ends without an exception the file is flushed to the disk, then renamed.
    Otherwise ``target`` is as it was and nothing is left, parents made for it included.

    Args:
        target: The file to make. Missing parents are made.
        nbytes: How large it is going to be, as far as known.

    Yields:
        The file to write to.

    Raises:
        OSError: If it cannot be written, or, before anything is, the disk lacks ``nbytes``.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_file(Path(parent, "a.txt")) as file:
        ...         file.write(b"a")
        ...         before = os.path.exists(f"{parent}/a.txt")
        ...     before, os.listdir(parent)
        (False, ['a.txt'])
    """
    target = Path(os.path.abspath(target))
    _remove_leftovers(target)
    _check_space(target, nbytes)
    with _workplace(target) as place:
        partial = place / "partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            file = AtomicFile(target, descriptor)
            yield file
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, file.target)


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file of this content, text as UTF-8, that appears whole or not at all.

    Raises:
        OSError: If it cannot be written; ``target`` is as it was then.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     write_whole(Path(parent, "a.txt"), "whole")
        ...     Path(parent, "a.txt").read_text()
        'whole'
    """
    with atomic_file(target) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_all(descriptor: int, buffer: memoryview, offset: int | None = None) -> None:
    """Write all of a buffer of bytes, of which one call of the system may take a part only.

    Args:
        descriptor: Of the open file.
        buffer: What to write.
        offset: Where in the file; None for where the last write ended.
    """
    while buffer:
        if offset is None:
            written = os.write(descriptor, buffer)
        else:
            written = os.pwrite(descriptor, buffer, offset)
            offset += written
        buffer = buffer[written:]


@contextmanager
def atomic_folder(target: Path, nbytes: int = 0) -> Iterator[Path]:
    """Fill a folder under a temporary name beside ``target``; rename it at the end.

    When the block ends without an exception everything is flushed to the disk, then renamed. Files
    have the modes that the umask leaves, also those that a library wrote as private ones. Otherwise
    ``target`` is as it was and nothing is left, parents made for it included.

    Args:
        target: The folder to make: not there yet, or empty. Missing parents are made.
        nbytes: How much is going to be written, as far as known.

    Yields:
        The temporary folder.

    Raises:
        ValueError: If ``target`` exists, or a folder beside it cannot be made; before the block.
            Also if ``target`` has appeared while the block ran.
        OSError: If the disk lacks ``nbytes``, before anything is made, or what was written cannot
            be flushed.

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
    _check_space(target, nbytes)
    with ExitStack() as stack:
        try:
            place = stack.enter_context(_workplace(target))
        except OSError as error:
            raise ValueError(
                f"no folder can be made in {target.parent} ({error.strerror}): choose another "
                "output folder"
            ) from error
        content = place / target.name
        content.mkdir()
        yield content
        _readable_by_whom_the_user_lets(content)
        _flush(content)
        _publish(content, target)


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


def existing_parent(path: Path) -> Path:
    """Return the innermost folder around ``path`` that exists."""
    return next(folder for folder in Path(os.path.abspath(path)).parents if folder.is_dir())


def _check_space(target: Path, needed: int) -> None:
    """Tell a full disk before any work; that it fills up meanwhile shows when it does."""
    if needed and shutil.disk_usage(existing_parent(target)).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target that no other process takes, and remove it in the end.

    Parents are made where they are missing. They stay unless something fails.
    """
    missing = [folder for folder in reversed(target.parents) if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place, lock = _locked_folder(target)
        try:
            yield place
            for parent in (target.parent, *(folder.parent for folder in missing)):
                flush_entry(parent)
        finally:
            shutil.rmtree(place, ignore_errors=True)
            os.close(lock)
    except BaseException:
        for folder in reversed(missing):
            with suppress(OSError):  # somebody else's files have come in
                folder.rmdir()
        raise


def _locked_folder(target: Path) -> tuple[Path, int]:
    """Make a uniquely named folder beside the target, with a lock in it that is ours."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        try:
            lock = _lock(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        if lock is not None:
            return place, lock


def _lock(folder: Path) -> int | None:
    """Lock a temporary folder; None if another process holds the lock or removed the folder.

    A folder that was just made may be taken for a leftover before its maker has locked it. Then
    the file that the maker locks is gone from the folder, which is why that is looked at last.
    """
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
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
        if not ours.fullmatch(folder.name) or folder.is_symlink():
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


def _readable_by_whom_the_user_lets(folder: Path) -> None:
    """Give all files below the mode that the folder, just made, got from the umask."""
    mode = folder.stat().st_mode & 0o666
    for parent, _, files in os.walk(folder):
        for path in (Path(parent, name) for name in files):
            if not path.is_symlink():
                path.chmod(mode)


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
