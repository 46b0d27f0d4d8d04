"""Checkpoints of Lightning, read without running code that they may hold, and written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast
from zipfile import is_zipfile

import torch
from torch import Tensor

from recall_lightning.weights.atomic import atomic_file
from recall_lightning.weights.naming import canonical_name


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU; its tensors stay in the file until they are looked at.

    Raises:
        ValueError: If it is no file, or cannot be read.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: of a sharded checkpoint make a file first, by python -m "
            "lightning.pytorch.utilities.consolidate_checkpoint"
        )
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}: name a checkpoint, such as one of ModelCheckpoint"
        )
    try:
        in_place = is_zipfile(path)  # the older form of torch.save is none
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except Exception as error:  # of as many kinds as there are ways to damage a file
        why = str(error).partition(". ")[0]  # what follows is torch's advice
        if isinstance(error, OSError) or len(why.split()) < 2:  # an errno, a number or nothing
            why = "it is damaged, or something else" if path.stat().st_size else "it is empty"
        raise ValueError(f"{path} cannot be read as a checkpoint ({why}): name another") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} is no checkpoint of Lightning: it holds no names")
    return dict(checkpoint)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, which appears under its name whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_file(path) as file:
        torch.save(dict(checkpoint), cast(IO[bytes], file))


def with_weights(
    state_dict: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a module's state with other weights in it; tied ones stay tied.

    Args:
        state_dict: By the module's own names, such as those of a compiled one.
        weights: By canonical name.

    Raises:
        ValueError: If a weight is not among the state, or has another shape there.

    Example:
        >>> state = {"net._orig_mod.w": torch.zeros(2), "b": torch.zeros(1)}
        >>> with_weights(state, {"net.w": torch.ones(2)})
        {'net._orig_mod.w': tensor([1., 1.]), 'b': tensor([0.])}
    """
    names = {canonical_name(name): name for name in state_dict}
    for name, weight in weights.items():
        if name not in names or state_dict[names[name]].shape != weight.shape:
            raise ValueError(
                f"the checkpoint's model needs a weight {name!r} of the shape {tuple(weight.shape)}"
            )
    written = {_storage(state_dict[names[name]]) for name in weights}
    copies: dict[int, torch.UntypedStorage] = {}  # with all views of it that the state has
    changed = {}
    for name, tensor in state_dict.items():
        where = _storage(tensor)
        if where in written and where not in copies:
            copies[where] = tensor.untyped_storage().clone()
        changed[name] = _in_storage(tensor, copies[where]) if where in copies else tensor
    for name, weight in weights.items():
        changed[names[name]].copy_(weight)
    return changed


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _in_storage(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
