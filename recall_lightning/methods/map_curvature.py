"""What the loss around a linear map's weights costs, and the gradient of that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from recall_lightning.checks import FormError
from recall_lightning.measuring.moments import (
    FullMoments,
    Moments,
    RowCounts,
    moments_from,
)
from recall_lightning.weights.growth import has_grown, padded


class MapCurvature(ABC):
    """A positive semidefinite matrix F over the entries of a linear map's matrix, (out, width).

    An embedding's matrix is (rows, dimension), whose inputs are its rows.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""

    @abstractmethod
    def times(self, difference: Tensor) -> Tensor:
        """Return F · vec(difference) in the shape of the matrix."""

    def of_factors(
        self, left: Tensor, right: Tensor, b: Tensor, a: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what :meth:`times` means for the factors of a product b @ a.

        Args:
            left: (out, any), with ``right`` the difference: left @ right.
            right: (any, width).
            b: (out, rank).
            a: (rank, width).

        Returns:
            F · (left @ right) · aᵀ and bᵀ · F · (left @ right).
        """
        product = self.times(left @ right)
        return product @ a.T, b.T @ product

    @abstractmethod
    def plus(self, task: MapCurvature, decay: float) -> MapCurvature:
        """Return ``decay`` times this, and the curvature of one more task."""

    @abstractmethod
    def grown(self, shape: tuple[int, int]) -> MapCurvature | None:
        """Return it for a matrix that has grown, on whose new part nothing depends; or None."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""

    def to(self, device: torch.device) -> MapCurvature:
        """Return it on a device."""
        return curvature_from(move_data_to_device(self.state_dict(), device))


class DiagonalCurvature(MapCurvature):
    """A diagonal F.

    Args:
        diagonal: In the shape of the matrix.

    Example:
        >>> DiagonalCurvature(torch.tensor([[2.0, 0.0]])).times(torch.tensor([[3.0, 1.0]]))
        tensor([[6., 0.]])
    """

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        rows, columns = self.diagonal.shape
        return rows, columns

    def times(self, difference: Tensor) -> Tensor:
        """Return it times a difference, entry by entry."""
        return self.diagonal * difference

    def plus(self, task: MapCurvature, decay: float) -> DiagonalCurvature:
        """Return the sum."""
        assert isinstance(task, DiagonalCurvature)
        return DiagonalCurvature(decay * self.diagonal + task.diagonal)

    def grown(self, shape: tuple[int, int]) -> DiagonalCurvature | None:
        """Return it with zeros for what is new."""
        if not has_grown(self.shape, shape):
            return None
        return DiagonalCurvature(padded(self.diagonal, shape))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the diagonal."""
        return {"diagonal": self.diagonal}


class KroneckerCurvature(MapCurvature):
    """The product of the moments of inputs and of gradients at outputs, F = E[xxᵀ] ⊗ E[ggᵀ].

    Args:
        inputs: Moments of inputs; of several tasks their sum.
        outputs: Moments of gradients at outputs, (out, out); of several tasks their sum.
        tasks: How many tasks that is, decayed as the sums are: of sums over k tasks F is the
            product by k, what a sum of k equal products is.

    Example:
        >>> moments = FullMoments(torch.diag(torch.tensor([2.0, 0.0])), torch.ones(()))
        >>> one = FullMoments(torch.ones(1, 1), torch.ones(()))
        >>> KroneckerCurvature(moments, one).times(torch.tensor([[3.0, 1.0]]))
        tensor([[6., 0.]])
    """

    def __init__(self, inputs: Moments, outputs: Moments, tasks: float = 1.0) -> None:
        self.inputs, self.outputs, self.tasks = inputs, outputs, tasks

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        sides = self.outputs.width, self.inputs.width
        return sides[::-1] if isinstance(self.inputs, RowCounts) else sides

    def times(self, difference: Tensor) -> Tensor:
        """Return E[ggᵀ] · difference · E[xxᵀ]."""
        if isinstance(self.inputs, RowCounts):
            product = self.inputs.times(self.outputs.times(difference.T).T)
        else:
            product = self.inputs.times(self.outputs.times(difference).T).T
        return product / self.tasks

    def of_factors(
        self, left: Tensor, right: Tensor, b: Tensor, a: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the same without a matrix of the map's size."""
        left = self.outputs.times(left) / self.tasks
        right = self.inputs.times(right.T).T
        return left @ (right @ a.T), (b.T @ left) @ right

    def plus(self, task: MapCurvature, decay: float) -> KroneckerCurvature:
        """Return the product of the sums."""
        assert isinstance(task, KroneckerCurvature)
        return KroneckerCurvature(
            self.inputs.scaled(decay).plus(task.inputs),
            self.outputs.scaled(decay).plus(task.outputs),
            decay * self.tasks + task.tasks,
        )

    def grown(self, shape: tuple[int, int]) -> KroneckerCurvature | None:
        """Return it with zeros for new outputs, or new rows of an embedding."""
        more = [new - old for new, old in zip(shape, self.shape, strict=True)]
        inputs, outputs = self.inputs, self.outputs
        if isinstance(inputs, RowCounts):
            if more[1] or more[0] < 0:
                return None
            counts = torch.nn.functional.pad(inputs.counts, (0, more[0]))
            return KroneckerCurvature(RowCounts(counts, inputs.count), outputs, self.tasks)
        if more[1] or more[0] < 0 or not isinstance(outputs, FullMoments):
            return None
        matrix = torch.nn.functional.pad(outputs.matrix, (0, more[0], 0, more[0]))
        return KroneckerCurvature(inputs, FullMoments(matrix, outputs.count), self.tasks)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of both sides, and the number of tasks."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        state = {f"{s}.{n}": t for s, m in sides.items() for n, t in m.state_dict().items()}
        return {**state, "tasks": torch.tensor(float(self.tasks))}


def curvature_from(state: Mapping[str, Any]) -> MapCurvature:
    """Build what ``state_dict`` returned.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If one has not the shape that the others have.

    Example:
        >>> curvature_from({"diagonal": torch.ones(2, 3)}).shape
        (2, 3)
    """
    if "diagonal" in state:
        if state["diagonal"].dim() != 2:
            raise FormError(f"has diagonal of shape {tuple(state['diagonal'].shape)}")
        return DiagonalCurvature(state["diagonal"])
    inputs, outputs = (
        moments_from({n.removeprefix(side): t for n, t in state.items() if n.startswith(side)})
        for side in ("inputs.", "outputs.")
    )
    return KroneckerCurvature(inputs, outputs, float(state["tasks"]))
