"""Second moments of what a linear map is given: full, low-rank plus diagonal, or by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.checks import FormError
from recall_lightning.measuring.decompositions import eigh


class Moments(ABC):
    """A sum over inputs that can be scaled to a mean and added to another.

    Attributes:
        count: How many inputs went in, as a tensor ``()`` so that processes can add theirs.
        noise: What of :attr:`squared_norm` is expected to be chance, () float64, as the spread of
            what was added at a time tells; None where nobody asked.
    """

    count: Tensor
    noise: Tensor | None = None

    @property
    @abstractmethod
    def width(self) -> int:
        """How many entries an input has; an embedding's rows."""

    @property
    @abstractmethod
    def trace(self) -> Tensor:
        """The sum of the diagonal, ()."""

    @property
    @abstractmethod
    def squared_norm(self) -> Tensor:
        """The sum of the matrix's squared entries, () float64 as smaller ones may not hold it."""

    @property
    def shrinkage(self) -> float | None:
        """How much of the matrix is best replaced by its mean eigenvalue in all directions, ≥ 0.

        That is the share ρ for which (1 − ρ) M + ρ (tr M / width) I has the least expected squared
        error (Ledoit and Wolf, Journal of Multivariate Analysis 88, 2004, eq. 14); None where the
        noise is not known.
        """
        if self.noise is None:
            return None
        above = float(self.squared_norm - self.trace.double().square() / self.width)  # of the mean
        return min(float(self.noise) / above, 1.0) if above > 0 else 0.0

    @abstractmethod
    def update(self, inputs: Tensor) -> None:
        """Add inputs: (inputs, width) of any floating dtype, for an embedding its indices."""

    @abstractmethod
    def scaled(self, factor: float) -> Moments:
        """Return these moments and their count times ``factor`` ≥ 0."""

    @abstractmethod
    def times(self, columns: Tensor) -> Tensor:
        """Return the moments' matrix times others of (width, any), in their shape."""

    @abstractmethod
    def plus(self, other: Moments) -> Moments:
        """Return the sum with moments of the same kind and width."""

    @abstractmethod
    def padded(self, width: int) -> Moments:
        """Return the same with more entries at the end, in which nothing was seen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def most_nbytes(self) -> int:
        """The memory that it takes once it has seen as many inputs as it may."""
        return self.nbytes

    @property
    def basis_nbytes(self) -> int:
        """The memory of its eigenvalues and eigenvectors, of as many inputs; 0 of a diagonal."""
        return 0

    def mean(self) -> Moments:
        """Return the mean over the inputs, which counts as one."""
        return self.scaled(1 / max(float(self.count), 1.0))


class FullMoments(Moments):
    """Σ xxᵀ as a matrix.

    Args:
        matrix: (width, width), float32 or wider.
        count: Inputs in it.
        noise: What of its squared norm is chance.

    Example:
        >>> moments = FullMoments.empty(2)
        >>> moments.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> moments.mean().matrix
        tensor([[5., 1.],
                [1., 2.]])
    """

    def __init__(self, matrix: Tensor, count: Tensor, noise: Tensor | None = None) -> None:
        self.matrix = matrix
        self.count = count
        self.noise = noise

    @classmethod
    def empty(cls, width: int, device: torch.device | None = None) -> FullMoments:
        """Return the moments of no input."""
        zeros = torch.zeros(width, width, dtype=torch.float32, device=device)
        return cls(zeros, zeros.new_zeros(()))

    @property
    def width(self) -> int:
        """How many entries an input has."""
        return len(self.matrix)

    @property
    def trace(self) -> Tensor:
        """The sum of the diagonal, ()."""
        return self.matrix.diagonal().sum()

    @property
    def squared_norm(self) -> Tensor:
        """The sum of the matrix's squared entries, () float64."""
        return _squared_norm(self.matrix)

    def update(self, inputs: Tensor) -> None:
        """Add inputs, (inputs, width)."""
        inputs = inputs.to(self.matrix.dtype)
        self.matrix.addmm_(inputs.T, inputs)
        self.count += len(inputs)
        self.__dict__.pop("spectrum", None)

    def add_sample(self, inputs: Tensor) -> Tensor:
        """Add inputs, (inputs, width); return the squared norm of what they add, ()."""
        before = self.matrix
        self.matrix = torch.zeros_like(before)
        self.update(inputs)
        added = self.squared_norm
        self.matrix += before
        return added

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ≥ 0 (width) and, in columns, eigenvectors (width, width), float32.

        They are computed once, in float64; NaN of moments that are not finite.
        """
        if not bool(self.matrix.isfinite().all()):  # eigh would raise
            nan = torch.full_like(self.matrix, torch.nan)
            return nan[0], nan
        values, vectors = eigh(self.matrix.double())
        return values.clamp(min=0).float(), vectors.float()

    @property
    def basis_nbytes(self) -> int:
        """The memory of :attr:`spectrum`, whether or not it is known yet."""
        return self.matrix.nbytes + self.diagonal.nbytes

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, (width)."""
        return self.matrix.diagonal()

    def add_diagonal(self, diagonal: Tensor, inputs: int) -> None:
        """Add so many inputs, whose moments are a diagonal, (width)."""
        self.matrix.diagonal().add_(diagonal.to(self.matrix))
        self.count += inputs
        self.__dict__.pop("spectrum", None)

    def of_inputs(self, chosen: Tensor) -> FullMoments:
        """Return the moments of some entries of the inputs, bool (width)."""
        return FullMoments(self.matrix[chosen][:, chosen], self.count)

    def scaled(self, factor: float) -> FullMoments:
        """Return these moments times ``factor``."""
        noise = None if self.noise is None else self.noise * factor**2
        return FullMoments(self.matrix * factor, self.count * factor, noise)

    def times(self, columns: Tensor) -> Tensor:
        """Return Σ xxᵀ · columns."""
        return self.matrix @ columns

    def plus(self, other: Moments) -> FullMoments:
        """Return the sum."""
        assert isinstance(other, FullMoments)
        noise = _of_both(self.noise, other.noise)
        return FullMoments(self.matrix + other.matrix, self.count + other.count, noise)

    def padded(self, width: int) -> FullMoments:
        """Return the same with more entries at the end."""
        more = width - self.width
        return FullMoments(functional.pad(self.matrix, (0, more, 0, more)), self.count, self.noise)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the matrix and the count, and the noise where it is known."""
        return {"matrix": self.matrix, "count": self.count, **_known(self.noise)}


class LowRankMoments(Moments):
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
        of_both = 2 * (factor.square() @ rest).sum() + _squared_norm(rest)
        return _squared_norm(factor @ factor.T) + of_both

    def update(self, inputs: Tensor) -> None:
        """Add inputs, (inputs, width)."""
        self._add(inputs)

    def add_sample(self, inputs: Tensor) -> Tensor:
        """Add inputs, (inputs, width); return about what squared norm they add, ().

        It is that of their sketch; a sketch of all columns has the matrix's own.
        """
        return _squared_norm(self._add(inputs)) * self.width / self._sketch_columns

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
        noise = None if self.noise is None else self.noise * factor**2
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
        noise = _of_both(self.noise, other.noise)
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
            **_known(self.noise),
        }


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

    @property
    def squared_norm(self) -> Tensor:
        """The sum of the squared counts, () float64."""
        return _squared_norm(self.counts)

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


def noise_of(moments: Moments, of_samples: Sequence[Tensor]) -> Tensor:
    """Return what of the squared norm of a sum is expected to be chance, () float64.

    Args:
        moments: The sum of independent samples; of one alone, all is chance.
        of_samples: Their squared norms.

    Example:
        >>> moments = FullMoments.empty(2)
        >>> samples = [moments.add_sample(torch.tensor([row])) for row in ([1.0, 0.0], [0.0, 1.0])]
        >>> noise_of(moments, samples)
        tensor(2.0000, dtype=torch.float64)
    """
    number, total = len(of_samples), moments.squared_norm
    if number == 1:
        return total
    spread = torch.stack([*of_samples]).sum() - total / number
    return (spread * number / (number - 1)).clamp(min=0)


def moments_from(state: Mapping[str, Any]) -> Moments:
    """Build what ``state_dict`` returned.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If one has not the shape that the others have.

    Example:
        >>> moments_from(RowCounts.empty(3).state_dict()).counts
        tensor([0., 0., 0.])
    """
    if "matrix" in state:
        _check_shapes(state, matrix=(len(state["matrix"]),) * 2, count=())
        return FullMoments(state["matrix"], state["count"], _noise_of(state))
    if "counts" in state:
        _check_shapes(state, counts=(state["counts"].numel(),), count=())
        return RowCounts(state["counts"], state["count"])
    factor, width = state["factor"], state["diagonal"].numel()
    _check_shapes(state, factor=(len(factor), width), diagonal=(width,), count=(), rank=())
    rank = int(state["rank"])
    return LowRankMoments(factor, state["diagonal"], state["count"], rank, _noise_of(state))


def _noise_of(state: Mapping[str, Tensor]) -> Tensor | None:
    if "noise" not in state:
        return None
    _check_shapes(state, noise=())
    return state["noise"]


def _squared_norm(entries: Tensor) -> Tensor:
    return torch.linalg.vector_norm(entries, dtype=torch.float64).square()


def _known(noise: Tensor | None) -> dict[str, Tensor]:
    return {} if noise is None else {"noise": noise}


def _of_both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the noise of a sum, which is that of what is known."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _check_shapes(state: Mapping[str, Tensor], **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise FormError(f"has {name} of shape {tuple(state[name].shape)}, not {shape}")


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
