"""Coefficients that are matrices: what a linear map takes of the snapshot, by input direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recall_lightning.measuring.linear_maps import LinearMap, as_matrix, from_matrix
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, Moments
from recall_lightning.merging.functional.in_place import range_of
from recall_lightning.merging.functional.regmean import NormalEquations
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.sharding import sharded_like, total, whole


@dataclass(frozen=True)
class Balance:
    """What old and new inputs count in a subspace merge.

    Attributes:
        new: λ, what the current task's inputs count against those of all earlier tasks.
        ridge: ε, relative to the mean of the old moments' diagonal.
        mix: s, the snapshot's weight in directions that no input has.
    """

    new: float
    ridge: float
    mix: float


class MapCoefficient(ABC):
    """A coefficient of a whole linear map: the merge adds ``pull(snapshot − live)`` to it.

    Attributes:
        linear_map: The weight, and bias, that it is of.
        mean: The mean of its eigenvalues, which a number in its place would be.
        condition: The condition number (1-norm) of the system that was solved for it; not finite
            where it could not be solved, which has the merge refused.
    """

    def __init__(self, linear_map: LinearMap, mean: float, condition: float) -> None:
        self.linear_map = linear_map
        self.mean = mean
        self.condition = condition

    @property
    def gain(self) -> float:
        """A bound of ‖pull(D)‖ / ‖D‖ (Frobenius); infinite unless one is known.

        Where it shows that a merged map cannot exceed its precision, none is made to be looked at.
        """
        return math.inf

    takes_all_rows = False
    """Whether :meth:`pull` needs all rows of the map's matrix at once."""

    @abstractmethod
    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return what a merge adds.

        Args:
            difference: (rows, width) float64, some rows of the matrix.
            first_row: Which the first of them is.

        Returns:
            The same shape and dtype.
        """

    def pull_product(self, left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what a merge adds where the difference is a product of thin matrices.

        Args:
            left: (out, k) float64.
            right: (k, width) float64.

        Returns:
            Pairs of matrices, (out, n) and (n, width), whose products sum up to ``pull(left @
            right)``.
        """
        return [(left, self.pull(right))]

    def fits(self, matrix: Tensor) -> bool:
        """Tell whether the coefficient is for a matrix of this shape, as ``as_matrix`` gives it."""
        return bool(matrix.shape[1] == self.linear_map.width)

    @abstractmethod
    def scaled(self, strength: float) -> MapCoefficient:
        """Return the coefficient times ``strength``."""


class FullCoefficient(MapCoefficient):
    """A = (G_old + r·s·I)(G_old + λ·G_new + r·I)⁻¹ as a matrix, with r = ε · tr(G_old) / width.

    W = W_live + (W_snapshot − W_live) A minimises E‖(W − W_snapshot)x‖² over old inputs, plus λ
    E‖(W − W_live)x‖² over new ones, plus r‖W − s·W_snapshot − (1 − s)·W_live‖². Solved by Cholesky
    in float64. Source: RegMean (arXiv 2212.09849), eq. 2, with the snapshot as one of two models.

    Example:
        >>> old, new = FullMoments.empty(2), FullMoments.empty(2)
        >>> old.update(torch.tensor([[1.0, 0.0]]))
        >>> new.update(torch.tensor([[0.0, 1.0]]))
        >>> linear_map = LinearMap("w", None, "linear", ("",), 2)
        >>> taken = FullCoefficient.solve(linear_map, old, new, Balance(1.0, 1e-6, 0.5))
        >>> taken.pull(torch.ones(1, 2, dtype=torch.float64)).round(decimals=4)
        tensor([[1., 0.]], dtype=torch.float64)
    """

    def __init__(
        self,
        linear_map: LinearMap,
        matrix: Tensor,
        mean: float,
        condition: float,
    ) -> None:
        super().__init__(linear_map, mean, condition)
        self.matrix = matrix

    @classmethod
    def solve(
        cls, linear_map: LinearMap, old: FullMoments, new: FullMoments, balance: Balance
    ) -> FullCoefficient:
        """Solve for the coefficient of a map with these moments."""
        kept = old.matrix.to(torch.float64, copy=True)
        ridge = balance.ridge * float(kept.diagonal().mean())
        equations = NormalEquations(kept + balance.new * new.matrix.to(kept), ridge)
        kept.diagonal().add_(ridge * balance.mix)
        matrix = kept @ equations.inverse
        return cls(linear_map, matrix, float(matrix.diagonal().mean()), equations.condition)

    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return ``difference`` @ A."""
        return difference @ self.matrix

    @cached_property
    def gain(self) -> float:
        """A bound of the largest singular value of A."""
        return largest_singular_value(self.matrix)

    def scaled(self, strength: float) -> FullCoefficient:
        """Return the coefficient times ``strength``."""
        matrix = self.matrix * strength
        return FullCoefficient(self.linear_map, matrix, self.mean * strength, self.condition)


class LowRankCoefficient(MapCoefficient):
    """The same for moments of low rank plus a diagonal, G = BᵀB + diag(rest); no matrix is formed.

    With D = diag(rest_old + λ·rest_new + r) and C the rows of B_old over those of √λ·B_new, the
    inverse of G_old + λ·G_new + r·I is D⁻¹ − D⁻¹Cᵀ(I + C D⁻¹ Cᵀ)⁻¹C D⁻¹ (Woodbury).
    """

    def __init__(
        self,
        linear_map: LinearMap,
        old_factor: Tensor,
        old_diagonal: Tensor,
        inverse_diagonal: Tensor,
        whitened: Tensor,
        condition: float,
        strength: float = 1.0,
    ) -> None:
        self._old_factor = old_factor  # (rank, width): B_old
        self._old_diagonal = old_diagonal  # (width): rest_old + r·s
        self._inverse_diagonal = inverse_diagonal  # (width): D⁻¹
        self._whitened = whitened  # (2 rank, width): L⁻¹ C D⁻¹, L of the Cholesky factor
        self._strength = strength
        super().__init__(linear_map, strength * self._mean(), condition)

    @classmethod
    def solve(
        cls, linear_map: LinearMap, old: LowRankMoments, new: LowRankMoments, balance: Balance
    ) -> LowRankCoefficient:
        """Solve for the coefficient of a map with these moments."""
        ridge = balance.ridge * float(old.diagonal.mean())
        old_rest, old_factor = old.rest.double(), old.factor.double()
        diagonal = old_rest + balance.new * new.rest.to(old_rest) + ridge
        stacked = torch.cat([old_factor, balance.new**0.5 * new.factor.to(old_factor)])
        core = stacked @ (stacked / diagonal).T
        core.diagonal().add_(1)
        lower, failed = torch.linalg.cholesky_ex(core)
        whitened = torch.linalg.solve_triangular(lower, stacked / diagonal, upper=False)
        core_inverse = torch.cholesky_inverse(lower)
        condition = float(torch.linalg.norm(core, 1) * torch.linalg.norm(core_inverse, 1))
        condition = math.inf if bool(failed) else condition
        old_diagonal = old_rest + ridge * balance.mix
        return cls(linear_map, old_factor, old_diagonal, 1 / diagonal, whitened, condition)

    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return ``difference`` @ A, at the cost of a few thin products."""
        kept = difference * self._old_diagonal
        kept += (difference @ self._old_factor.T) @ self._old_factor
        return self._strength * self._times_inverse(kept)

    def scaled(self, strength: float) -> LowRankCoefficient:
        """Return the coefficient times ``strength``."""
        return LowRankCoefficient(
            self.linear_map,
            self._old_factor,
            self._old_diagonal,
            self._inverse_diagonal,
            self._whitened,
            self.condition,
            self._strength * strength,
        )

    @cached_property
    def gain(self) -> float:
        """A bound of the largest singular value of A; the inverse is D⁻¹ at most."""
        old = self._old_factor.square().sum() + self._old_diagonal.max()
        return abs(self._strength) * float(old * self._inverse_diagonal.max())

    def _times_inverse(self, rows: Tensor) -> Tensor:
        return rows * self._inverse_diagonal - (rows @ self._whitened.T) @ self._whitened

    def _mean(self) -> float:
        inverse_entries = self._inverse_diagonal - self._whitened.square().sum(0)
        trace = (self._old_diagonal * inverse_entries).sum()
        trace = trace + (self._times_inverse(self._old_factor) * self._old_factor).sum()
        return float(trace) / len(self._old_diagonal)


def solve_map(
    linear_map: LinearMap, old: Moments, new: Moments, balance: Balance
) -> MapCoefficient | None:
    """Solve for a map's coefficient; None where it had no old input, so that nothing is to be kept.

    Raises:
        ValueError: If the two moments are of different kinds or widths.
    """
    if isinstance(old, FullMoments) and isinstance(new, FullMoments):
        if old.matrix.shape != new.matrix.shape:
            raise ValueError(
                f"the inputs of {linear_map.weight!r} had {len(old.matrix)} entries in earlier "
                f"tasks and have {len(new.matrix)} now: its width may not change between tasks"
            )
        if not bool(old.matrix.diagonal().any()):
            return None
        return FullCoefficient.solve(linear_map, old, new, balance)
    if isinstance(old, LowRankMoments) and isinstance(new, LowRankMoments):
        if not bool(old.diagonal.any()):
            return None
        return LowRankCoefficient.solve(linear_map, old, new, balance)
    raise ValueError(
        f"the moments of {linear_map.weight!r} are {type(old).__name__} of earlier tasks and "
        f"{type(new).__name__} now: keep moments.width as it was"
    )


def merge_maps_(
    live: Mapping[str, Tensor],
    snapshot: Mapping[str, Tensor],
    coefficients: Sequence[MapCoefficient],
) -> None:
    """Merge linear maps in place: [W b] ← [W b] + pull([W b] of the snapshot − [W b]).

    Computed in float64, a few rows at a time, and rounded once. Weights that equal their copy stay
    equal bit for bit. Sharded maps are gathered one by one; every process must call.

    Args:
        live: Name to the tensor that is written.
        snapshot: Name to its copy, on any device.
        coefficients: One a map.

    Example:
        >>> moments = FullMoments(torch.eye(2), torch.ones(()))
        >>> linear_map = LinearMap("w", None, "linear", ("",), 2)
        >>> coefficient = FullCoefficient.solve(linear_map, moments, moments, Balance(1, 1e-9, 0))
        >>> live = {"w": torch.zeros(1, 2)}
        >>> merge_maps_(live, {"w": torch.ones(1, 2)}, [coefficient])
        >>> live["w"]
        tensor([[0.5000, 0.5000]])
    """
    with torch.no_grad():
        for coefficient in coefficients:
            linear_map, merged = coefficient.linear_map, _merged(live, snapshot, coefficient)
            for name, tensor in from_matrix(linear_map, merged, live).items():
                live[name].copy_(sharded_like(tensor, live[name]))


def check_merged_maps(
    live: Mapping[str, Tensor],
    snapshot: Mapping[str, Tensor],
    coefficients: Sequence[MapCoefficient],
) -> None:
    """Check that no merged map exceeds the precision of its weights; nothing is written.

    It costs little where the size of the weights shows that they cannot, and another merge of the
    map where it doesn't. Every process must call.

    Raises:
        ValueError: Naming a map that would hold a NaN or an infinity.
    """
    with torch.no_grad():
        for coefficient in coefficients:
            if _surely_fits(live, snapshot, coefficient):
                continue
            if not all_finite(_merged(live, snapshot, coefficient)):
                raise ValueError(
                    f"merging made the weight {coefficient.linear_map.weight!r} infinite in its "
                    "precision: use another rule or precision"
                )


def _merged(
    live: Mapping[str, Tensor], snapshot: Mapping[str, Tensor], coefficient: MapCoefficient
) -> Tensor:
    """Return a merged map as a matrix, rounded."""
    linear_map = coefficient.linear_map
    now, then = (
        as_matrix(linear_map, {name: whole(tensors[name]) for name in _names(linear_map)})
        for tensors in (live, snapshot)
    )
    merged = torch.empty_like(now)
    rows = len(now) if coefficient.takes_all_rows else max(1, _ELEMENTS // now.shape[1])
    for start in range(0, len(now), rows):
        part = slice(start, start + rows)
        wide = now[part].double()
        merged[part] = wide + coefficient.pull(then[part].to(wide) - wide, start)
    return merged


def _surely_fits(
    live: Mapping[str, Tensor], snapshot: Mapping[str, Tensor], coefficient: MapCoefficient
) -> bool:
    """Tell whether |W + pull(W_snapshot − W)| cannot exceed what the weights can hold.

    With n entries of size m at most, that is m + gain · 2m√n at most.
    """
    names = _names(coefficient.linear_map)
    count = sum(live[name].numel() for name in names)
    allowed = 1 / (1 + 2 * coefficient.gain * math.sqrt(count))
    for name in names:
        most = min(torch.finfo(dtype).max for dtype in (live[name].dtype, torch.float32))
        ranges = [range_of(tensors[name]) for tensors in (live, snapshot)]
        exceeds = not all(  # also for NaN
            -allowed * most <= low and high <= allowed * most for low, high in ranges
        )
        if total(float(exceeds), live[name]) > 0:
            return False
    return True


def largest_singular_value(matrix: Tensor) -> float:
    """Return a bound of the largest singular value: √(‖A‖₁‖A‖_∞), without a decomposition.

    >>> largest_singular_value(torch.diag(torch.tensor([1.0, -3.0])))
    3.0
    """
    sizes = matrix.abs()
    return math.sqrt(float(sizes.sum(0).max()) * float(sizes.sum(1).max()))


def _names(linear_map: LinearMap) -> list[str]:
    return [name for name in (linear_map.weight, linear_map.bias) if name is not None]


_ELEMENTS = 1 << 18  # of a map that are float64 at a time
