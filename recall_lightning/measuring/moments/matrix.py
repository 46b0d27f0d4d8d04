"""Second moments that are a matrix, and what their samples tell of how much of it is chance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.measuring.moments.base import Moments


class MatrixMoments(Moments):
    """A sum Σ xxᵀ, of which it may be known how much is chance.

    Attributes:
        noise: What of :attr:`squared_norm` is expected to be chance, () float64, as the spread of
            what was added at a time tells; None where nobody asked.
    """

    noise: Tensor | None

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
    def add_sample(self, inputs: Tensor) -> Tensor:
        """Add inputs, (inputs, width); return about the squared norm of what they add, ()."""

    def _noise_times(self, factor: float) -> Tensor | None:
        """Return the noise of these moments times ``factor``."""
        return None if self.noise is None else self.noise * factor**2

    def _noise_plus(self, other: MatrixMoments) -> Tensor | None:
        """Return the noise of the sum with others, which is that of what is known."""
        if self.noise is None or other.noise is None:
            return other.noise if self.noise is None else self.noise
        return self.noise + other.noise

    def _noise_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the noise."""
        return {} if self.noise is None else {"noise": self.noise}


def noise_of(moments: MatrixMoments, of_samples: Sequence[Tensor]) -> Tensor:
    """Return what of the squared norm of a sum is expected to be chance, () float64.

    Args:
        moments: The sum of independent samples; of one alone, all is chance.
        of_samples: Their squared norms.

    Example:
        >>> from recall_lightning.measuring.moments import FullMoments
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


def squared_norm(entries: Tensor) -> Tensor:
    """Return the sum of squared entries, () float64."""
    return torch.linalg.vector_norm(entries, dtype=torch.float64).square()
