"""What tells a fit's training data from another's, read without drawing a sample."""

import functools
import hashlib
import os
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Dataset

_DEPTH = 5  # of attributes within attributes
_SAMPLED = 64  # elements of a tensor or a list


def marks_of(trainer: Trainer) -> dict[str, str]:
    """Return digests of what the training datasets hold, by where it lies in them.

    They are of a sample of each tensor, array, list, number and text, of paths the last part. No
    item is read, which might draw at random, so what a dataset makes up as it goes has no mark.
    """
    marks: dict[str, str] = {}
    _mark(trainer.train_dataloader, "0", marks, _DEPTH, set())
    return marks


def differ(marks: Mapping[str, str], others: Mapping[str, str]) -> bool | None:
    """Tell whether two fits have other training data; None where nothing tells.

    Example:
        >>> differ({"0": "a", "0.length": "b"}, {"0": "a", "0.length": "c"})
        True
        >>> differ({"0": "a", "0.length": "b"}, {"0": "a", "0.length": "b"}) is None
        True
    """
    shared = marks.keys() & others.keys()
    if any(marks[where] != others[where] for where in shared):
        return True
    told = [where for where in shared if "." in where and not where.endswith(".length")]
    return False if told else None


def _mark(value: Any, where: str, marks: dict[str, str], depth: int, seen: set[int]) -> None:
    if isinstance(value, (torch.Generator, np.random.Generator)) or id(value) in seen or not depth:
        return
    seen.add(id(value))
    if not isinstance(value, Dataset) and hasattr(value, "dataset"):  # a loader has its own state
        value = value.dataset
    if (content := _content(value)) is not None:
        marks[where] = hashlib.blake2b(content, digest_size=8).hexdigest()
        return
    marks[where] = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, (Dataset, Sequence)):
        with suppress(TypeError, NotImplementedError):  # as of an IterableDataset
            marks[f"{where}.length"] = str(len(value))  # type: ignore[arg-type]
    for name, inside in _parts(value):
        _mark(inside, f"{where}.{name}", marks, depth - 1, seen)


def _content(value: Any) -> bytes | None:
    """The bytes of what is a value by itself."""
    if isinstance(value, Tensor):
        if value.device.type == "meta" or value.is_sparse or value.is_nested:
            return str(value.shape).encode()
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].cpu()
        return f"{tuple(value.shape)} {value.dtype} {sample.tolist()}".encode()
    if isinstance(value, np.ndarray):
        every = max(1, value.size // _SAMPLED)
        few = value.reshape(-1)[::every][:_SAMPLED].tolist()
        return f"{value.shape} {value.dtype} {few}".encode()
    if isinstance(value, str):
        return os.path.basename(value).encode()
    if isinstance(value, (bool, int, float, complex, bytes, type(None))):
        return repr(value).encode()
    if isinstance(value, os.PathLike):
        return os.path.basename(os.fspath(value)).encode()
    return None


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What a value is made of, by name; of a long list a few."""
    if isinstance(value, functools.partial):
        return [("function", value.func), ("args", value.args), ("kwargs", value.keywords)]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [("name", value.__qualname__), ("closure", cells)]
    if isinstance(value, Mapping):
        return [(str(name), value[name]) for name in list(value)[:_SAMPLED]]
    if isinstance(value, (list, tuple)):
        step = max(1, len(value) // 8)
        return [(str(index), value[index]) for index in range(0, len(value), step)][:8]
    return list(getattr(value, "__dict__", {}).items())


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
