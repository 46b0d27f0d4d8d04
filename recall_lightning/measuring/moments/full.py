"""Second moments as a matrix."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.decompositions import eigh
from recall_lightning.measuring.moments.base import Moments
from recall_lightning.measuring.moments.matrix import MatrixMoments, squared_norm


class FullMoments(MatrixMoments):
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
        return squared_norm(self.matrix)

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
        noise = self._noise_times(factor)
        return FullMoments(self.matrix * factor, self.count * factor, noise)

    def times(self, columns: Tensor) -> Tensor:
        """Return Σ xxᵀ · columns."""
        return self.matrix @ columns

    def plus(self, other: Moments) -> FullMoments:
        """Return the sum."""
        assert isinstance(other, FullMoments)
        noise = self._noise_plus(other)
        return FullMoments(self.matrix + other.matrix, self.count + other.count, noise)

    def padded(self, width: int) -> FullMoments:
        """Return the same with more entries at the end."""
        more = width - self.width
        return FullMoments(functional.pad(self.matrix, (0, more, 0, more)), self.count, self.noise)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the matrix and the count, and the noise where it is known."""
        return {"matrix": self.matrix, "count": self.count, **self._noise_state()}
