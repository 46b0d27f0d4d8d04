"""Second moments of whatever kind."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Moments(ABC):
    """A sum over inputs that can be scaled to a mean and added to another.

    Attributes:
        count: How many inputs went in, as a tensor ``()`` so that processes can add theirs.
    """

    count: Tensor

    @property
    @abstractmethod
    def width(self) -> int:
        """How many entries an input has; an embedding's rows."""

    @property
    @abstractmethod
    def trace(self) -> Tensor:
        """The sum of the diagonal, ()."""

    @property
    def shrinkage(self) -> float | None:
        """How much of the matrix is best replaced by its mean; None where nobody asked."""
        return None

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
