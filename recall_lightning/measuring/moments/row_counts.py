"""Second moments of an embedding's inputs, which are one-hot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.moments.base import Moments


class RowCounts(Moments):
    """How often each row of an embedding was looked up: the diagonal moments of one-hot inputs.

    Args:
        counts: (rows,).
        count: Lookups in all.

    Example:
        >>> counts = RowCounts.empty(3)
        >>> counts.update(torch.tensor([2, 0, 2]))
        >>> counts.mean().counts
        tensor([0.3333, 0.0000, 0.6667])
    """

    def __init__(self, counts: Tensor, count: Tensor) -> None:
        self.counts = counts
        self.count = count

    @classmethod
    def empty(cls, rows: int, device: torch.device | None = None) -> RowCounts:
        """Return the counts of no lookup."""
        zeros = torch.zeros(rows, dtype=torch.float32, device=device)
        return cls(zeros, zeros.new_zeros(()))

    @property
    def width(self) -> int:
        """How many rows the embedding has."""
        return len(self.counts)

    @property
    def trace(self) -> Tensor:
        """The sum of the diagonal, ()."""
        return self.counts.sum()

    def update(self, inputs: Tensor) -> None:
        """Add lookups, integers (lookups,)."""
        self.counts += torch.bincount(inputs, minlength=len(self.counts)).to(self.counts.dtype)
        self.count += len(inputs)

    def scaled(self, factor: float) -> RowCounts:
        """Return these counts times ``factor``."""
        return RowCounts(self.counts * factor, self.count * factor)

    def times(self, columns: Tensor) -> Tensor:
        """Return each row as often as it was looked up."""
        return self.counts[:, None] * columns

    def plus(self, other: Moments) -> RowCounts:
        """Return the sum."""
        assert isinstance(other, RowCounts)
        return RowCounts(self.counts + other.counts, self.count + other.count)

    def padded(self, width: int) -> RowCounts:
        """Return the same with more rows at the end."""
        return RowCounts(functional.pad(self.counts, (0, width - self.width)), self.count)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts, by row and in all."""
        return {"counts": self.counts, "count": self.count}
