"""Coefficients of linear maps whose curvature is a Kronecker product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from recall_lightning.measuring.decompositions import quickest_device
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, Moments, RowCounts
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient, largest_singular_value


@dataclass(frozen=True, eq=False)
class Basis:
    """Coordinates of one side of a map, inputs or outputs, in which curvature is diagonal.

    Attributes:
        values: What the curvature is along each of them, ≥ 0, (n).
        into: The matrix that leads into them, (n, width) float32; None where they are the entries
            themselves.
        back: What leads back, (width, n), with into @ back = I.
        rest: What the curvature is along all directions that these leave out, those of
            I − back @ into; 0 where n is the width.
    """

    values: Tensor
    into: Tensor | None
    back: Tensor | None
    rest: float = 0.0

    @property
    def width(self) -> int:
        """How many entries the side has."""
        return len(self.values) if self.into is None else self.into.shape[1]

    @property
    def is_complete(self) -> bool:
        """Whether no direction is left out."""
        return len(self.values) == self.width

    @cached_property
    def gain(self) -> float:
        """A bound of what turning into the coordinates and back may enlarge."""
        turns = [
            largest_singular_value(turn) for turn in (self.into, self.back) if turn is not None
        ]
        return math.prod(turns) if self.is_complete else 1 + 2 * math.prod(turns)

    @classmethod
    def of(cls, moments: Moments) -> Basis:
        """Return the eigenbasis of moments; of low rank, what the diagonal adds is its mean.

        It is found once for the same moments.
        """
        known = _BASES.setdefault(moments, {})
        if None not in known:
            known[None] = cls._of(moments)
        return known[None]

    @classmethod
    def _of(cls, moments: Moments) -> Basis:
        if isinstance(moments, RowCounts):
            return cls(moments.counts, None, None)
        if isinstance(moments, LowRankMoments):
            rest = float(moments.rest.mean())
            _, sizes, directions = torch.linalg.svd(moments.factor.double(), full_matrices=False)
            directions = directions.float()
            values = (sizes.square() + rest).float()
            complete = len(values) == moments.width
            return cls(values, directions, directions.T, 0.0 if complete else rest)
        assert isinstance(moments, FullMoments)
        values, vectors = moments.spectrum
        return cls(values, vectors.T, vectors)

    @classmethod
    def between(cls, old: Moments, new: Moments, ridge: float) -> tuple[Basis, float]:
        """Return the basis in which old and new moments are both diagonal.

        Each is divided by the mean of its diagonal, and ``ridge`` added to it. The basis is that of
        the generalised eigenproblem G_old v = μ G_new v, solved in float64 by a Cholesky
        factorisation of G_new; ``values`` are the μ. It is found once for the same two moments.

        Moments of low rank plus a diagonal are both given diagonals of one shape d, the mean of the
        two: G = √d (c·I + UᵀU) √d with c the mean of the own diagonal. So both are multiples of one
        another outside of the directions that either has kept, and no (width, width) matrix is
        formed. Where the ranks are the width, this is exact.

        Returns:
            The basis, and a bound of the condition number of G_new.

        Raises:
            ValueError: If the two are not kept alike.
        """
        of_old = _BASES_BETWEEN.setdefault(old, WeakKeyDictionary())
        known = of_old.setdefault(new, {})
        if ridge not in known:
            known[ridge] = cls._between(old, new, ridge)
        return known[ridge]

    @classmethod
    def _between(cls, old: Moments, new: Moments, ridge: float) -> tuple[Basis, float]:
        if isinstance(old, RowCounts) and isinstance(new, RowCounts):
            rows, counts = _relative(old.counts, ridge), _relative(new.counts, ridge)
            return cls((rows / counts).float(), None, None), float(counts.max() / counts.min())
        if isinstance(old, LowRankMoments) and isinstance(new, LowRankMoments):
            return cls._between_low_ranks(old, new, ridge)
        if not (isinstance(old, FullMoments) and isinstance(new, FullMoments)):
            raise ValueError(
                f"moments are {type(old).__name__} of earlier tasks and {type(new).__name__} now: "
                "keep moments.width as it was"
            )
        values, into, back, condition = _both_diagonal(
            _relative(old.matrix, ridge), _relative(new.matrix, ridge)
        )
        return cls(values.float(), into.float(), back.float()), condition

    @classmethod
    def _between_low_ranks(
        cls, old: LowRankMoments, new: LowRankMoments, ridge: float
    ) -> tuple[Basis, float]:
        (u_old, own_old), (u_new, own_new) = (_relative_parts(one, ridge) for one in (old, new))
        c_old, c_new = own_old.mean(), own_new.mean()
        shape = (own_old / c_old + own_new / c_new) / 2
        root = shape.sqrt()
        stacked = torch.cat([u_old, u_new]) / root
        if not bool(stacked.isfinite().all()):
            stacked = torch.full_like(stacked, torch.nan)
            return cls(stacked[:, 0].float(), stacked.float(), stacked.T.float()), torch.nan
        q, r = torch.linalg.qr(stacked.T)
        r_old, r_new = r[:, : len(u_old)], r[:, len(u_old) :]
        unit = torch.eye(len(r), dtype=r.dtype, device=r.device)
        values, into, back, condition = _both_diagonal(
            r_old @ r_old.T + c_old * unit, r_new @ r_new.T + c_new * unit
        )
        rest = 0.0 if len(r) == old.width else float(c_old / c_new)
        into, back = into @ (q.T * root), (q / root[:, None]) @ back
        condition *= float(shape.max() / shape.min())
        return cls(values.float(), into.float(), back.float(), rest), condition


_BASES: WeakKeyDictionary[Moments, dict[None, Basis]] = WeakKeyDictionary()
_BASES_BETWEEN: WeakKeyDictionary[
    Moments, WeakKeyDictionary[Moments, dict[float, tuple[Basis, float]]]
] = WeakKeyDictionary()
"""What was found for moments that are still there, which no rule changes."""


def _both_diagonal(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return μ, the matrix into the basis in which both are diagonal, its inverse, cond(new)."""
    if not bool((old + new).isfinite().all()):
        nan = torch.full_like(new, torch.nan)
        return nan[0], nan, nan, torch.nan
    device, quickest = old.device, quickest_device(old)
    old, new = old.to(quickest), new.to(quickest)
    lower, failed = torch.linalg.cholesky_ex(new)
    half = torch.linalg.solve_triangular(lower, old, upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)
    if bool(failed):  # the condition has the merge refused
        whitened = torch.zeros_like(whitened)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    into = vectors.T @ lower.T
    back = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    sizes = torch.linalg.eigvalsh(new)
    condition = math.inf if bool(failed) else float(sizes[-1] / sizes[0])
    return values.clamp(min=0).to(device), into.to(device), back.to(device), condition


def _relative(moments: Tensor, ridge: float) -> Tensor:
    wide = moments.double()
    if wide.dim() == 1:
        return wide / wide.mean() + ridge
    wide = wide / wide.diagonal().mean()
    wide.diagonal().add_(ridge)
    return wide


def _relative_parts(moments: LowRankMoments, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the factor and the own diagonal of relative moments."""
    mean = moments.diagonal.double().mean()
    return moments.factor.double() / mean.sqrt(), moments.rest.double() / mean + ridge


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
        super().__init__(linear_map, strength * self._mean(), condition)

    @classmethod
    def of_importance(
        cls, linear_map: LinearMap, inputs: Moments, outputs: Moments, scale: float
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
        outputs: tuple[Moments, Moments],
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
        given = difference.float()
        if self.takes_all_rows:
            pulled = self._pull_whole(given)
        else:
            pulled = self._pull_rows(given, self.inputs.values[first_row : first_row + len(given)])
        return (self.strength * pulled).to(difference)

    def _pull_whole(self, given: Tensor) -> Tensor:
        """Pull in the four parts that the two sides' coordinates and what they leave out make.

        Those are one, two by two, so that all products but one by a number are thin.
        """
        kept, into = self._parts, _times(self.outputs.into, given)
        core = kept.both * _times(self.inputs.into, into.T).T
        rows = _times(self.inputs.back, core.T).T
        if not self.inputs.is_complete:
            rows = rows + kept.of_outputs[:, None] * into
        pulled = _times(self.outputs.back, rows)
        if not self.outputs.is_complete:
            columns = kept.of_inputs * _times(self.inputs.into, given.T).T
            pulled = pulled + _times(self.inputs.back, columns.T).T
        return pulled if kept.of_none == 0 else pulled + kept.of_none * given

    def _pull_rows(self, given: Tensor, counts: Tensor) -> Tensor:
        """Pull rows of an embedding, whose inputs are each a side of their own."""
        apart = self._weight(counts[:, None], self.outputs.rest)
        weights = self._weight(counts[:, None], self.outputs.values) - apart
        turned = weights * _times(self.outputs.into, given.T).T
        return apart * given + _times(self.outputs.back, turned.T).T

    def pull_product(self, left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return V (w ∘ (V⁻¹ left)(right U⁻ᵀ)) Uᵀ as products of what is thin."""
        kept, wide, flat = self._parts, left.float(), right.float()
        into, onto = _times(self.outputs.into, wide), _times(self.inputs.into, flat.T).T
        core = self.strength * kept.both * (into @ onto)
        out, back = self.outputs.back, self.inputs.back
        assert out is not None
        assert back is not None
        fewer = len(core) <= core.shape[1]
        products = [(out, core @ back.T) if fewer else (out @ core, back.T)]
        if not self.inputs.is_complete:
            rows = kept.of_none * wide + out @ (kept.of_outputs[:, None] * into)
            products.append((self.strength * rows, flat))
        if not self.outputs.is_complete:
            products.append((wide, self.strength * (kept.of_inputs * onto) @ back.T))
        return [(one.to(left), two.to(right)) for one, two in products]

    @property
    def gain(self) -> float:
        """A bound of what turning into both bases and back may enlarge; w is 1 at most."""
        return abs(self.strength) * self.inputs.gain * self.outputs.gain

    def fits(self, matrix: Tensor) -> bool:
        """Tell whether both sides are as wide as those of a map's matrix."""
        sides = (self.outputs.width, self.inputs.width)
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

    def _weight(self, inputs: Tensor | float, outputs: Tensor | float) -> Tensor:
        """Return w along directions of both sides with these values."""
        weighted = torch.as_tensor(self.scale * inputs * outputs)
        return weighted / (1 + weighted)

    @cached_property
    def _parts(self) -> _Parts:
        """What each of the four parts of both sides has more than what the parts around it have."""
        inputs, outputs = self.inputs, self.outputs
        neither = float(self._weight(inputs.rest, outputs.rest))
        of_inputs = self._weight(inputs.values, outputs.rest)
        of_outputs = self._weight(inputs.rest, outputs.values)
        both = self._weight(inputs.values, outputs.values[:, None])
        if not (inputs.is_complete and outputs.is_complete):
            both = both - of_inputs - of_outputs[:, None] + neither
        return _Parts(both, of_inputs - neither, of_outputs - neither, neither)

    def _mean(self) -> float:
        """Return the mean of w over all directions."""
        rows, columns, total = self.outputs, self.inputs, 0.0
        sides = (rows, columns) if self.takes_all_rows else (columns, rows)
        for part in sides[0].values.split(_ROWS):
            total += float(self._weight(part[:, None], sides[1].values).sum().double())
        more_rows, more_columns = (one.width - len(one.values) for one in (rows, columns))
        if more_columns:
            total += more_columns * float(self._weight(columns.rest, rows.values).sum())
        if more_rows:
            total += more_rows * float(self._weight(columns.values, rows.rest).sum())
            total += more_rows * more_columns * float(self._weight(columns.rest, rows.rest))
        return total / (rows.width * columns.width)


@dataclass(frozen=True)
class _Parts:
    both: Tensor  # (n of outputs, n of inputs)
    of_inputs: Tensor  # (n of inputs)
    of_outputs: Tensor  # (n of outputs)
    of_none: float


_ROWS = 1024  # of weights that are formed at a time, for their mean


def _times(matrix: Tensor | None, columns: Tensor) -> Tensor:
    return columns if matrix is None else matrix @ columns
