"""Second moments as a matrix of low rank plus a diagonal."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.decompositions import eigh
from recall_lightning.measuring.moments.base import Moments
from recall_lightning.measuring.moments.full import FullMoments
from recall_lightning.measuring.moments.matrix import MatrixMoments, squared_norm


class LowRankMoments(MatrixMoments):
    """Σ xxᵀ as BᵀB plus a diagonal: the leading directions, and what the others add to each entry.

    The diagonal of the whole is exact; BᵀB never exceeds what was summed, so the rest is no less
    than 0. Directions are those of the Nyström approximation from a sketch, the product with a
    random matrix of a few columns, which is summed as inputs arrive (Tropp et al., arXiv
    1706.05736); they are exact where the sketch is as wide as the inputs.

    Args:
        factor: B, (at most rank, width) float32.
        diagonal: The diagonal of all of Σ xxᵀ, (width).
        count: Inputs in it.
        rank: How many directions are kept.
        noise: What of its squared norm is chance.

    Example:
        >>> moments = LowRankMoments.empty(3, rank=1)
        >>> moments.update(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]))
        >>> moments.factor.square(), moments.rest
        (tensor([[0., 9., 0.]]), tensor([1., 0., 0.]))
    """

    def __init__(
        self,
        factor: Tensor,
        diagonal: Tensor,
        count: Tensor,
        rank: int,
        noise: Tensor | None = None,
    ) -> None:
        self._factor = factor
        self.noise = noise
        self._sketch: Tensor | None = None  # (width, columns)
        self.diagonal = diagonal
        self.count = count
        self.rank = rank

    @classmethod
    def empty(cls, width: int, rank: int, device: torch.device | None = None) -> LowRankMoments:
        """Return the moments of no input."""
        zeros = torch.zeros(width, dtype=torch.float32, device=device)
        return cls(zeros.new_zeros(0, width), zeros, zeros.new_zeros(()), rank)

    @classmethod
    def of(cls, moments: FullMoments, rank: int) -> LowRankMoments:
        """Return the best approximation of a matrix.

        Example:
            >>> full = FullMoments(torch.diag(torch.tensor([9.0, 1.0])), torch.ones(()))
            >>> LowRankMoments.of(full, rank=1).rest
            tensor([0., 1.])
        """
        values, vectors = moments.spectrum
        factor = (values[-rank:].sqrt() * vectors[:, -rank:]).T
        diagonal = moments.matrix.diagonal().clone()
        return cls(factor, diagonal, moments.count, rank, moments.noise)

    @property
    def width(self) -> int:
        """How many entries an input has."""
        return len(self.diagonal)

    @property
    def most_nbytes(self) -> int:
        """The memory that it takes with all directions that it may keep.

        >>> LowRankMoments.empty(100, rank=4).nbytes, LowRankMoments.empty(100, rank=4).most_nbytes
        (412, 2012)
        """
        return self.nbytes - self.factor.nbytes + self.rank * self.diagonal.nbytes

    @property
    def basis_nbytes(self) -> int:
        """The memory of as many eigenvalues and eigenvectors as directions."""
        return self.rank * (self.diagonal.nbytes + self.diagonal.element_size())

    @property
    def rest(self) -> Tensor:
        """The diagonal of what B leaves out, (width), ≥ 0."""
        return (self.diagonal - self.factor.square().sum(0)).clamp(min=0)

    @property
    def trace(self) -> Tensor:
        """The sum of the diagonal, ()."""
        return self.diagonal.sum()

    @property
    def squared_norm(self) -> Tensor:
        """The sum of the matrix's squared entries, () float64."""
        factor, rest = self.factor.double(), self.rest.double()
        of_both = 2 * (factor.square() @ rest).sum() + squared_norm(rest)
        return squared_norm(factor @ factor.T) + of_both

    def update(self, inputs: Tensor) -> None:
        """Add inputs, (inputs, width)."""
        self._add(inputs)

    def add_sample(self, inputs: Tensor) -> Tensor:
        """Add inputs, (inputs, width); return about what squared norm they add, ().

        It is that of their sketch; a sketch of all columns has the matrix's own.
        """
        return squared_norm(self._add(inputs)) * self.width / self._sketch_columns

    def _add(self, inputs: Tensor) -> Tensor:
        """Add inputs, and return their sketch."""
        inputs = inputs.to(self.diagonal.dtype)
        self.diagonal = self.diagonal + inputs.square().sum(0)
        self.count = self.count + len(inputs)
        test = _test_matrix(self.width, self.rank, inputs.device)
        if self._sketch is None:
            self._sketch = self._factor.T @ (self._factor @ test)
        added = inputs.T @ (inputs @ test)
        self._sketch += added
        return added

    @property
    def _sketch_columns(self) -> int:
        return _test_matrix(self.width, self.rank, self.diagonal.device).shape[1]

    @property
    def factor(self) -> Tensor:
        """B, (at most rank, width)."""
        if self._sketch is not None:
            test = _test_matrix(self.width, self.rank, self._sketch.device)
            self._factor, self._sketch = _nystrom(self._sketch, test, self.rank), None
        return self._factor

    def add_diagonal(self, diagonal: Tensor, inputs: int) -> None:
        """Add so many inputs, whose moments are a diagonal, (width)."""
        self.diagonal = self.diagonal + diagonal.to(self.diagonal)
        self.count = self.count + inputs

    def of_inputs(self, chosen: Tensor) -> LowRankMoments:
        """Return the moments of some entries of the inputs, bool (width)."""
        return LowRankMoments(self.factor[:, chosen], self.diagonal[chosen], self.count, self.rank)

    def scaled(self, factor: float) -> LowRankMoments:
        """Return these moments times ``factor``."""
        noise = self._noise_times(factor)
        return LowRankMoments(
            self.factor * factor**0.5, self.diagonal * factor, self.count * factor, self.rank, noise
        )

    def times(self, columns: Tensor) -> Tensor:
        """Return the sum of both parts times the columns."""
        return self.factor.T @ (self.factor @ columns) + self.rest[:, None] * columns

    def plus(self, other: Moments) -> LowRankMoments:
        """Return the sum, brought back to the rank."""
        assert isinstance(other, LowRankMoments)
        factor = _leading(torch.cat([self.factor, other.factor]), self.rank)
        diagonal, count = self.diagonal + other.diagonal, self.count + other.count
        noise = self._noise_plus(other)
        return LowRankMoments(factor, diagonal, count, self.rank, noise)

    def padded(self, width: int) -> LowRankMoments:
        """Return the same with more entries at the end."""
        factor, diagonal = (
            functional.pad(one, (0, width - self.width)) for one in (self.factor, self.diagonal)
        )
        return LowRankMoments(factor, diagonal, self.count, self.rank, self.noise)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the factor, the diagonal and the count, and the noise where it is known."""
        rank = torch.tensor(self.rank)
        return {
            "factor": self.factor,
            "diagonal": self.diagonal,
            "count": self.count,
            "rank": rank,
            **self._noise_state(),
        }


def _leading(rows: Tensor, rank: int) -> Tensor:
    """Return at most (rank, width) rows with the leading part of rowsᵀrows.

    They are its principal directions, of few rows too: what is kept of inputs is none of them.
    """
    if len(rows) == 0:
        return rows
    products = (rows @ rows.T).double()
    if not bool(products.isfinite().all()):  # eigh would raise; who uses the moments will refuse
        return torch.full_like(rows[:rank], torch.nan)
    _, vectors = eigh(products)
    return vectors[:, -rank:].T.to(rows) @ rows


@lru_cache(maxsize=64)
def _test_matrix(width: int, rank: int, device: torch.device) -> Tensor:
    """Return what inputs of a width are sketched with, the same in all processes.

    It has some more columns than directions are kept, for these to be close to the leading ones.
    """
    columns = _SKETCHED * rank + 8
    if columns >= width:
        return torch.eye(width, dtype=torch.float32, device=device)
    seeded = torch.Generator().manual_seed(width)
    test = torch.randn(width, columns, generator=seeded, dtype=torch.float64)
    return torch.linalg.qr(test)[0].to(device, torch.float32)


_SKETCHED = 2  # columns of a sketch a direction that is kept


def _nystrom(sketch: Tensor, test: Tensor, rank: int) -> Tensor:
    """Return at most (rank, width) rows B with the leading part of GT(TᵀGT)⁺TᵀG as BᵀB.

    Args:
        sketch: GT of moments G.
        test: T, orthonormal columns.
        rank: How many.
    """
    sketch = sketch.double()
    core = test.double().T @ sketch
    if not bool(core.isfinite().all()):  # eigh would raise; who uses the moments will refuse
        return torch.full_like(sketch.T[:rank], torch.nan, dtype=torch.float32)
    sizes, vectors = eigh((core + core.T) / 2)
    # what float32 sums have rounded away is no direction
    noise = torch.finfo(torch.float32).eps * sizes[-1].clamp(min=0)
    found = sizes > noise
    halves = (sketch @ vectors[:, found]) / sizes[found].sqrt()
    return _leading(halves.T, rank).float()
