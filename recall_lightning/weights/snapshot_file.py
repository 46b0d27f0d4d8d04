"""Snapshots in files: written once, whole or not at all, and read through a memory map."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.checks import FormError
from recall_lightning.weights.atomic import atomic_file
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.reading import open_model
from recall_lightning.weights.safetensors_layout import layout
from recall_lightning.weights.snapshot import Snapshot, weights_to_copy

SUFFIX = ".safetensors"
_NAME = re.compile(r"\w+-[0-9a-f]{8}" + re.escape(SUFFIX), re.ASCII)


def checked_name(name: str) -> str:
    """Return the name of a snapshot's file, as some file tells it, if it can be one.

    It is the name alone, without any folder: what it is of is read, or removed, inside its own.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> checked_name("task_0-0123abcd.safetensors")
        'task_0-0123abcd.safetensors'
        >>> checked_name("../../model.safetensors")
        Traceback (most recent call last):
        recall_lightning.checks.FormError: '../../model.safetensors' is no name of a...
    """
    if not _NAME.fullmatch(name):
        raise FormError(
            f"{name!r} is no name of a snapshot's file, such as 'task_0-0123abcd{SUFFIX}'"
        )
    return name


@dataclass(frozen=True)
class FileReference:
    """What a checkpoint holds of a snapshot that lies in a file.

    Attributes:
        folder: Where it was written.
        name: The file's name, which has the beginning of the checksum in it.
        checksum: BLAKE2b of the whole file, 32 hexadecimal digits.
        nbytes: The file's size.
        weights: How many weights are in it.

    Raises:
        ValueError: If the name is no bare one, or not this checksum's.
    """

    folder: str
    name: str
    checksum: str
    nbytes: int
    weights: int

    def __post_init__(self) -> None:
        if checked_name(self.name)[-len(SUFFIX) - 8 :] != self.checksum[:8] + SUFFIX:
            raise FormError(f"{self.name!r} is not named by its checksum, {self.checksum}")

    def state_dict(self) -> dict[str, Any]:
        """Return plain Python, of which ``FileReference(**state)`` makes the reference again."""
        return asdict(self)


class SnapshotFileError(ValueError):
    """A snapshot's file is not what was written; who looks for it says what to do."""


class MissingSnapshotError(SnapshotFileError):
    """A snapshot's file is not where it was looked for."""


class FileSnapshot(Snapshot):
    """A snapshot whose weights lie in a safetensors file and take no memory of the process.

    Each weight is mapped: its pages belong to the file's cache, and are read when a merge comes to
    them.

    Args:
        tensors: The mapped weights, on the CPU.
        reference: Their file.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     snapshot = FileSnapshot.write(layer, Path(folder), "task_0")
        ...     again = FileSnapshot.open(snapshot.reference, Path(folder))
        >>> bool(again["weight"].equal(layer.weight)), snapshot.reference.name[:7]
        (True, 'task_0-')
    """

    def __init__(self, tensors: Mapping[str, Tensor], reference: FileReference) -> None:
        super().__init__(tensors)
        self.reference = reference

    @classmethod
    def write(cls, module: nn.Module, folder: Path, stem: str) -> FileSnapshot:
        """Copy every weight of ``module`` into a file and map it.

        Its name appears once the whole of it is written. That happens in chunks, without a copy in
        memory.

        Args:
            module: The live module; its weights may be on any device.
            folder: Where the file goes; made if missing.
            stem: How its name begins.

        Raises:
            ValueError: As :meth:`~recall_lightning.weights.snapshot.Snapshot.take`.
            OSError: If it cannot be written; nothing is left of it then.
        """
        live = weights_to_copy(module)
        plan = {name: (weight.dtype, tuple(weight.shape)) for name, weight in live.items()}
        header, places = layout(stem, list(live), plan, {})
        nbytes = len(header) + sum(place.nbytes for place in places.values())
        digest = blake2b(digest_size=16)
        with atomic_file(folder / stem, nbytes) as file:
            for buffer in _buffers(header, [live[name] for name in places]):
                digest.update(buffer)
                file.write(buffer)
            checksum = digest.hexdigest()
            name = f"{stem}-{checksum[:8]}{SUFFIX}"
            file.target = folder / name
        reference = FileReference(str(folder), name, checksum, nbytes, len(live))
        return cls.map(reference, folder)

    @classmethod
    def open(cls, reference: FileReference, folder: Path) -> FileSnapshot:
        """Map a snapshot's file after checking that it is what was written.

        Args:
            reference: What a checkpoint holds.
            folder: Where the file lies now.

        Raises:
            ValueError: If it is missing, truncated or altered.
        """
        path = folder / reference.name
        what = f"{path}, of {reference.weights} weights and {reference.nbytes:,} bytes,"
        try:
            size = path.stat().st_size
            if size != reference.nbytes:
                raise SnapshotFileError(f"{what} has {size:,} bytes")
            checksum = _checksum(path)
        except FileNotFoundError as error:
            raise MissingSnapshotError(f"{what} is missing") from error
        except OSError as error:
            raise SnapshotFileError(f"{what} cannot be read ({error.strerror})") from error
        if checksum != reference.checksum:
            raise SnapshotFileError(f"{what} has been altered: its checksum is not the one it had")
        return cls.map(reference, folder)

    @classmethod
    def map(cls, reference: FileReference, folder: Path) -> FileSnapshot:
        """Map a snapshot's file as it is.

        Raises:
            ValueError: If it is no whole safetensors file.
        """
        return cls(open_model(folder / reference.name), reference)

    def to_devices_of(
        self, live: Mapping[str, Tensor], device: torch.device | None = None
    ) -> FileSnapshot:
        """Return the snapshot itself, which stays in its file."""
        return self


def is_snapshot_file(path: Path) -> bool:
    """Tell whether a file is what its name says: a snapshot's, whole, in this very place.

    Raises:
        OSError: If it cannot be read.
    """
    own = not path.is_symlink() and path.is_file() and _NAME.fullmatch(path.name) is not None
    return own and path.name.endswith(f"-{_checksum(path)[:8]}{SUFFIX}")


def _checksum(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _buffers(header: bytes, weights: list[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for weight in weights:
        flat = weight.detach().reshape(-1)
        for chunk in flat.split(chunk_size(flat.device)):
            yield chunk.cpu().contiguous().view(torch.uint8).numpy().data
