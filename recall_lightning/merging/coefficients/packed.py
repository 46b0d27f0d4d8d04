"""The coefficient of a weight in which several linear maps are packed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient


class PackedCoefficient(MapCoefficient):
    """Several maps' coefficients, each for its rows of the weight they are packed in.

    Args:
        parts: The maps, and the coefficient of each: a matrix or a number.

    Example:
        >>> q, k = (LinearMap("w", None, "projection", ("",), 2, rows=r) for r in ((0, 1), (1, 2)))
        >>> taken = PackedCoefficient([(q, 0.25), (k, 0.5)])
        >>> taken.pull(torch.ones(2, 2)), taken.mean
        (tensor([[0.2500, 0.2500],
                [0.5000, 0.5000]]), 0.375)
    """

    takes_all_rows = True

    def __init__(self, parts: Sequence[tuple[LinearMap, MapCoefficient | float]]) -> None:
        self.parts = list(parts)
        given = [c for _, c in parts]
        means = [c.mean if isinstance(c, MapCoefficient) else c for c in given]
        sizes = [rows.stop - rows.start for rows in self._rows()]
        mean = sum(m * n for m, n in zip(means, sizes, strict=True)) / sum(sizes)
        conditions = [c.condition if isinstance(c, MapCoefficient) else 1.0 for c in given]
        whole = replace(parts[0][0], rows=None)
        super().__init__(whole, mean, max(conditions, key=lambda c: math.inf if c != c else c))

    @property
    def gain(self) -> float:
        """The largest of the parts', as they have no row in common."""
        given = [c for _, c in self.parts]
        return max(c.gain if isinstance(c, MapCoefficient) else abs(c) for c in given)

    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return each part's pull of its rows; rows that are no part's have 0."""
        pulled = torch.zeros_like(difference)
        for rows, (_, given) in zip(self._rows(), self.parts, strict=True):
            own = difference[rows]
            pulled[rows] = given.pull(own) if isinstance(given, MapCoefficient) else given * own
        return pulled

    def fits(self, matrix: Tensor) -> bool:
        """Tell whether each part is for a matrix of its rows."""
        given = zip(self._rows(), self.parts, strict=True)
        if matrix.shape[1] != self.linear_map.width or len(matrix) != max(
            rows.stop for rows in self._rows()
        ):
            return False
        return all(c.fits(matrix[rows]) for rows, (_, c) in given if isinstance(c, MapCoefficient))

    def scaled(self, strength: float) -> PackedCoefficient:
        """Return the coefficient times ``strength``."""
        scaled = [
            (one, c.scaled(strength) if isinstance(c, MapCoefficient) else c * strength)
            for one, c in self.parts
        ]
        return PackedCoefficient(scaled)

    def _rows(self) -> list[slice]:
        return [slice(*one.rows) for one, _ in self.parts if one.rows is not None]


def of_weights(
    of_maps: Sequence[tuple[LinearMap, Coefficient | None]], rest: Mapping[str, Coefficient]
) -> dict[str, Coefficient]:
    """Give maps' coefficients to their weights and biases; those packed in one weight, together.

    Args:
        of_maps: The maps, and what each has; None where it stays with the rest.
        rest: By weight name, what each has where its map has nothing. A packed map without a
            coefficient has the mean of these over its rows; all of them without one change nothing.

    Returns:
        By weight name, of maps that have something.

    Example:
        >>> one = LinearMap("w", "b", "linear", ("",), 3)
        >>> of_weights([(one, 0.5)], {"w": 0.1, "b": 0.1, "norm": 0.1})
        {'w': 0.5, 'b': 0.5}
    """
    given: dict[str, Coefficient] = {}
    packed: dict[str, list[tuple[LinearMap, Coefficient | None]]] = {}
    for one, coefficient in of_maps:
        if one.rows is not None:
            packed.setdefault(one.weight, []).append((one, coefficient))
        elif coefficient is not None:
            names = (one.weight, one.bias, one.second_factor)
            given |= {name: coefficient for name in names if name is not None}
    for name, parts in packed.items():
        if all(coefficient is None for _, coefficient in parts):
            continue
        filled = [
            (one, c if isinstance(c, MapCoefficient) else _number(one, rest[name], c))
            for one, c in parts
        ]
        together = PackedCoefficient(filled)
        given |= {n: together for n in (name, parts[0][0].bias) if n is not None}
    return given


def _number(one: LinearMap, rest: Coefficient, own: float | Tensor | None) -> float:
    if own is None and isinstance(rest, Tensor) and rest.dim() > 0:
        own = one.part_of(rest).float().mean()
    chosen = rest if own is None else own
    assert not isinstance(chosen, MapCoefficient)
    return float(chosen)
