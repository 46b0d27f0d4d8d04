"""Snapshots in files: written once, whole or not at all, and read through a memory map."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recall_lightning.weights.atomic import flush_entry
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.disk_space import check_space
from recall_lightning.weights.layout import layout
from recall_lightning.weights.naming import memory_of, named_weights
from recall_lightning.weights.reading import open_model
from recall_lightning.weights.snapshot import Snapshot, weights_to_copy

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class FileReference:
    """What a checkpoint holds of a snapshot that lies in a file.

    Attributes:
        folder: Where it was written.
        name: The file's name, which has the beginning of the checksum in it.
        checksum: BLAKE2b of the whole file, 32 hexadecimal digits.
        nbytes: The file's size.
        weights: How many weights are in it.
    """

    folder: str
    name: str
    checksum: str
    nbytes: int
    weights: int

    def state_dict(self) -> dict[str, Any]:
        """Return plain Python, of which ``FileReference(**state)`` makes the reference again."""
        return asdict(self)


class MissingSnapshotError(ValueError):
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

        The file is written beside its place, flushed to the disk and then renamed, so its name
        stands for the whole of it. Weights are written in chunks, without a copy in memory.

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
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        check_space(folder / stem, nbytes)
        digest = blake2b(digest_size=16)
        with _partial_file(folder, stem) as (descriptor, partial):
            for buffer in _buffers(header, [live[name] for name in places]):
                digest.update(buffer)
                while buffer:  # one call may write less than it is given
                    buffer = buffer[os.write(descriptor, buffer) :]
            os.fsync(descriptor)
            checksum = digest.hexdigest()
            name = f"{stem}-{checksum[:8]}{SUFFIX}"
            os.replace(partial, folder / name)
        flush_entry(folder)
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
            size, digest = path.stat().st_size, blake2b(digest_size=16)
            if size != reference.nbytes:
                raise ValueError(f"{what} has {size:,} bytes")
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
        except FileNotFoundError as error:
            raise MissingSnapshotError(f"{what} is missing") from error
        except OSError as error:
            raise ValueError(f"{what} cannot be read ({error.strerror})") from error
        if digest.hexdigest() != reference.checksum:
            raise ValueError(f"{what} has been altered: its checksum is not the one it had")
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

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Let ``module`` compute with the snapshot's weights inside the ``with`` block.

        Where the live weights are on the CPU they make way, and nothing is copied.
        """
        live = named_weights(module)
        self.check_matches(live)
        if not _can_make_way(module, live):
            with super().applied_to(module):
                yield
            return
        kept = {name: live[name].data for name in self}
        try:
            for name in self:
                live[name].data = self[name]
            yield
        finally:
            for name in self:
                live[name].data = kept[name]


def _can_make_way(module: nn.Module, live: Mapping[str, Tensor]) -> bool:
    """Tell whether all of a module's weights can be exchanged for tensors of other memory.

    One that shares its memory with another parameter cannot, nor can what is not on the CPU, nor an
    embedding whose forward writes into its weight.
    """
    if any(getattr(child, "max_norm", None) is not None for child in module.modules()):
        return False
    if any(weight.device.type != "cpu" or isinstance(weight, DTensor) for weight in live.values()):
        return False
    own = set(map(id, live.values()))
    memories = {memory_of(weight) for weight in live.values()}
    others = [
        tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in own
    ]
    return not any(memory_of(tensor) in memories for tensor in others)


def _buffers(header: bytes, weights: list[Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for weight in weights:
        flat = weight.detach().reshape(-1)
        for chunk in flat.split(chunk_size(flat.device)):
            yield chunk.cpu().contiguous().view(torch.uint8).numpy().data


@contextmanager
def _partial_file(folder: Path, stem: str) -> Iterator[tuple[int, Path]]:
    """Open a file that is locked as long as this process writes it, and gone unless renamed."""
    path = folder / f".{stem}-{os.getpid()}.partial"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor, path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes have left that were killed while they wrote."""
    for path in folder.glob(".*.partial"):
        with suppress(OSError):  # another process writes it, or has just renamed it
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
