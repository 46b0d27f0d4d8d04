"""Training and held-out samples of one task."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, IterableDataset, random_split


def with_validation(
    entry: Dataset[Any] | tuple[Dataset[Any], Dataset[Any]], val_fraction: float, seed: int
) -> tuple[Dataset[Any], Dataset[Any]]:
    """A ``(train, validation)`` pair of what was given for one task.

    Args:
        entry: Such a pair already, or a map-style dataset of which a part is held out.
        val_fraction: That part, between 0 and 1.
        seed: Decides which samples are held out.

    Raises:
        MisconfigurationException: If a tuple is no pair, or nothing can be held out.

    Example::

        >>> train, val = with_validation(list(range(10)), val_fraction=0.2, seed=0)
        >>> len(train), len(val), sorted([*train, *val]) == list(range(10))
        (8, 2, True)
    """
    if isinstance(entry, tuple):
        if len(entry) != 2 or None in entry:
            raise MisconfigurationException(
                f"A tuple of {len(entry)} was given for a task; it must be two datasets,"
                " (train, validation)."
            )
        return entry
    if isinstance(entry, IterableDataset) or not isinstance(entry, Sized):
        raise MisconfigurationException(
            f"Nothing can be held out of {type(entry).__name__}, which has no length:"
            " pass a (train, validation) tuple."
        )
    held_out = round(len(entry) * val_fraction)
    if not 0 < held_out < len(entry):
        raise MisconfigurationException(
            f"val_fraction={val_fraction} holds {held_out} of {len(entry)} samples out: both"
            " training and validation need at least one."
        )
    generator = torch.Generator().manual_seed(seed)
    train, val = random_split(entry, [len(entry) - held_out, held_out], generator)
    return train, val
