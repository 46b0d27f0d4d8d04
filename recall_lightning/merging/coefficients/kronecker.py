"""Coefficients of linear maps whose curvature is a Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, Moments, RowCounts
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient, largest_singular_value


@dataclass(frozen=True)
class Basis:
    """Coordinates of one side of a map, inputs or outputs, in which curvature is diagonal.

    Attributes:
        values: What the curvature is along each of them, ≥ 0, (width).
        into: The matrix that leads into them, (width, width) float32; None where they are the
            entries themselves.
        back: Its inverse.
    """

    values: Tensor
    into: Tensor | None
    back: Tensor | None

    @classmethod
    def of(cls, moments: Moments) -> Basis:
        """Return the eigenbasis of moments."""
        if isinstance(moments, RowCounts):
            return cls(moments.counts, None, None)
        assert isinstance(moments, FullMoments)
        values, vectors = moments.spectrum
        return cls(values, vectors.T, vectors)

    @classmethod
    def between(cls, old: Moments, new: Moments, ridge: float) -> tuple[Basis, float]:
        """Return the basis in which old and new moments are both diagonal.

        Each is divided by the mean of its diagonal, and ``ridge`` added to it. The basis is that of
        the generalised eigenproblem G_old v = μ G_new v, solved in float64 by a Cholesky
        factorisation of G_new; ``values`` are the μ.

        Returns:
            The basis, and the condition number (2-norm) of G_new.
        """
        if isinstance(old, RowCounts) and isinstance(new, RowCounts):
            rows, counts = _relative(old.counts, ridge), _relative(new.counts, ridge)
            return cls((rows / counts).float(), None, None), float(counts.max() / counts.min())
        assert isinstance(old, FullMoments)
        assert isinstance(new, FullMoments)
        g_old, g_new = _relative(old.matrix, ridge), _relative(new.matrix, ridge)
        if not bool((g_old + g_new).isfinite().all()):
            nan = torch.full_like(g_new, torch.nan)
            return cls(nan[0].float(), nan.float(), nan.float()), torch.nan
        lower, failed = torch.linalg.cholesky_ex(g_new)
        half = torch.linalg.solve_triangular(lower, g_old, upper=False)
        whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)
        if bool(failed):  # the condition has the merge refused
            whitened = torch.zeros_like(whitened)
        values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
        into = vectors.T @ lower.T
        back = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
        condition = math.inf if bool(failed) else float(torch.linalg.cond(g_new))
        return cls(values.clamp(min=0).float(), into.float(), back.float()), condition


def _relative(moments: Tensor, ridge: float) -> Tensor:
    wide = moments.double()
    if wide.dim() == 1:
        return wide / wide.mean() + ridge
    wide = wide / wide.diagonal().mean()
    wide.diagonal().add_(ridge)
    return wide


class KroneckerCoefficient(MapCoefficient):
    """w = sF / (1 + sF) in the coordinates where the curvature F = outputs ⊗ inputs is diagonal.

    With D = W_snapshot − W_live the merge adds V (w ∘ (V⁻¹ D U⁻ᵀ)) Uᵀ, U the basis of inputs and V
    that of outputs.

    Args:
        linear_map: The map, an embedding too, whose inputs are its rows.
        inputs: The basis of its inputs.
        outputs: The basis of its outputs.
        scale: s.
        condition: Of the system that this solves.
        strength: What all is multiplied by.

    Example:
        >>> one = FullMoments(torch.tensor([[1.0]]), torch.ones(()))
        >>> two = FullMoments(torch.diag(torch.tensor([0.0, 1.0])), torch.ones(()))
        >>> linear_map = LinearMap("w", None, "linear", ("",), 2)
        >>> taken = KroneckerCoefficient(linear_map, Basis.of(two), Basis.of(one), 3.0, 1.0)
        >>> taken.pull(torch.tensor([[1.0, 1.0]]))
        tensor([[0.0000, 0.7500]])
    """

    def __init__(
        self,
        linear_map: LinearMap,
        inputs: Basis,
        outputs: Basis,
        scale: float,
        condition: float,
        strength: float = 1.0,
    ) -> None:
        self.inputs, self.outputs, self.scale, self.strength = inputs, outputs, scale, strength
        self.takes_all_rows = linear_map.kind != "embedding"
        rows = outputs.values if self.takes_all_rows else inputs.values
        parts = (self._weights(i, i + _ROWS).sum().double() for i in range(0, len(rows), _ROWS))
        elements = len(inputs.values) * len(outputs.values)
        mean = strength * float(sum(parts)) / elements
        super().__init__(linear_map, mean, condition)

    @classmethod
    def of_importance(
        cls, linear_map: LinearMap, inputs: Moments, outputs: FullMoments, scale: float
    ) -> KroneckerCoefficient:
        """Return the proximal step of scale / 2 · vec(D)ᵀ F vec(D).

        Args:
            linear_map: The map.
            inputs: Moments of its inputs in earlier tasks, summed over them.
            outputs: Those at its outputs; their mean over tasks counts.
            scale: λ.
        """
        of_inputs = Basis.of(inputs)
        of_outputs = Basis.of(outputs)
        scale = scale / max(float(outputs.count), 1.0)
        largest = float(of_inputs.values.max() * of_outputs.values.max())
        least = float(of_inputs.values.min() * of_outputs.values.min())
        condition = (1 + scale * largest) / (1 + scale * least)
        return cls(linear_map, of_inputs, of_outputs, scale, condition)

    @classmethod
    def between(
        cls,
        linear_map: LinearMap,
        inputs: tuple[Moments, Moments],
        outputs: tuple[FullMoments, FullMoments],
        new_inputs: float,
        ridges: tuple[float, float],
    ) -> KroneckerCoefficient:
        """Return the minimiser of the two quadratic losses around the snapshot and the live model.

        That is k · tr(D_oldᵀ B_old D_old A_old) + λ · tr(D_newᵀ B_new D_new A_new) with D the
        distance from each, A the moments of inputs, B those of outputs, each relative to its mean,
        and k the number of earlier tasks.

        Args:
            linear_map: The map.
            inputs: Moments of its inputs, of earlier tasks and of the current one.
            outputs: Those at its outputs.
            new_inputs: λ.
            ridges: Added to the moments of inputs and of outputs, relative to their means.
        """
        of_inputs, input_condition = Basis.between(*inputs, ridges[0])
        of_outputs, output_condition = Basis.between(*outputs, ridges[1])
        scale = max(float(outputs[0].count), 1.0) / new_inputs
        condition = max(input_condition, output_condition)
        return cls(linear_map, of_inputs, of_outputs, scale, condition)

    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return V (w ∘ (V⁻¹ D U⁻ᵀ)) Uᵀ, in float32."""
        rotated = difference.float()
        if self.takes_all_rows:
            rotated = _times(self.outputs.into, rotated)
            rotated = _times(self.inputs.into, rotated.T).T * self._weights(0, len(rotated))
            rotated = _times(self.outputs.back, rotated)
            rotated = _times(self.inputs.back, rotated.T).T
        else:
            rotated = _times(self.outputs.into, rotated.T).T
            rotated = rotated * self._weights(first_row, first_row + len(rotated))
            rotated = _times(self.outputs.back, rotated.T).T
        return (self.strength * rotated).to(difference)

    def pull_product(self, left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return V · (w ∘ (V⁻¹ left)(right U⁻ᵀ)) Uᵀ as the product of what is thinner."""
        rotated = _times(self.outputs.into, left.float())
        rotated = rotated @ _times(self.inputs.into, right.float().T).T
        weighted = self.strength * self._weights(0, len(rotated)) * rotated
        assert self.outputs.back is not None
        assert self.inputs.back is not None
        back, forth = self.outputs.back, self.inputs.back.T
        parts = (
            (back, weighted @ forth) if len(left) <= right.shape[1] else (back @ weighted, forth)
        )
        return [(parts[0].to(left), parts[1].to(right))]

    @cached_property
    def gain(self) -> float:
        """A bound of what turning into both bases and back may enlarge; w is 1 at most."""
        turns = (self.inputs.into, self.inputs.back, self.outputs.into, self.outputs.back)
        sizes = [largest_singular_value(turn) for turn in turns if turn is not None]
        return abs(self.strength) * math.prod(sizes)

    def fits(self, matrix: Tensor) -> bool:
        """Tell whether both sides are as wide as those of a map's matrix."""
        sides = (len(self.outputs.values), len(self.inputs.values))
        return tuple(matrix.shape) == (sides if self.takes_all_rows else sides[::-1])

    def scaled(self, strength: float) -> KroneckerCoefficient:
        """Return the coefficient times ``strength``."""
        return KroneckerCoefficient(
            self.linear_map,
            self.inputs,
            self.outputs,
            self.scale,
            self.condition,
            self.strength * strength,
        )

    def _weights(self, start: int, stop: int) -> Tensor:
        """Return w of some rows: of outputs, or of an embedding's."""
        rows, columns = self.outputs.values, self.inputs.values
        if not self.takes_all_rows:
            rows, columns = columns, rows
        weighted = self.scale * rows[start:stop, None] * columns
        return weighted / (1 + weighted)


_ROWS = 1024  # of weights that are formed at a time, for their mean


def _times(matrix: Tensor | None, columns: Tensor) -> Tensor:
    return columns if matrix is None else matrix @ columns
