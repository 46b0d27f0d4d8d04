"""Coefficients that are matrices, by which input directions earlier tasks used."""

import math
from dataclasses import replace

from torch import Tensor

from recall_lightning.deprecation import renamed_names
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, RowCounts
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.coefficients.linear_maps import Balance, solve_map
from recall_lightning.merging.coefficients.packed import of_weights
from recall_lightning.merging.coefficients.used_inputs import UsedInputsCoefficient
from recall_lightning.merging.rules.base import MergeInputs, MergeRule


class Subspace(MergeRule):
    """Keep each linear map's outputs on old inputs, and the live model's on new ones.

    The coefficient of a linear map is the matrix A of
    :class:`~recall_lightning.merging.coefficients.linear_maps.FullCoefficient`, of an embedding the
    same row by row with lookup counts as moments, (c_old + r·s) / (c_old + λ·c_new + r). Of an
    embedding whose lookups count together, in bags or sequences, it is the matrix over the rows
    that the current task has used; all others stay as they are. All other
    weights (norms, positions, matrices that are no linear map) get the number that this is for an
    input of 1 in all tasks: (k + ε·s) / (k + λ + ε) after k tasks. Source: RegMean (arXiv
    2212.09849), eq. 2; old moments are sums over tasks.

    Args:
        new_inputs: λ > 0: what the current task's inputs count against those of earlier tasks.
            Larger keeps less of the old.
        ridge: ε > 0, relative to the mean of the moments' diagonal.
        mix: s in [0, 1]: the snapshot's weight in directions that no input has.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sorted(Subspace(new_inputs=4.0).needs)
        ['moments', 'new_moments']
    """

    name = "subspace"
    needs = frozenset({"moments", "new_moments"})

    def __init__(
        self,
        new_inputs: float = 1.0,
        ridge: float = 0.01,
        mix: float = 0.3,
        strength: Setting = 1.0,
    ) -> None:
        super().__init__(strength)
        for name, value in (("new_inputs", new_inputs), ("ridge", ridge)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be a positive number")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix={mix!r} must lie in [0, 1]: the snapshot's weight")
        self.new_inputs, self.ridge, self.mix = new_inputs, ridge, mix

    def coefficients(self, inputs: MergeInputs) -> dict[str, Coefficient]:
        """Return a matrix for every linear map, a tensor for embeddings, a number for the rest."""
        tasks = inputs.earlier_tasks
        kept = tasks + self.ridge * self.mix
        plain = kept / (tasks + self.new_inputs + self.ridge)
        weights: dict[str, Coefficient] = dict.fromkeys(inputs.structure.weights, plain)
        of_maps = [
            (m, self._of_bag(m, inputs) if m.kind == "bag" else self._of_map(m, inputs))
            for m in inputs.maps
        ]
        return weights | of_weights(of_maps, weights)

    def _of_bag(self, linear_map: LinearMap, inputs: MergeInputs) -> Coefficient | None:
        """Return the coefficient over the rows that the current task has used, and of the rest."""
        name = linear_map.name
        old, now = inputs.old_moments.get(name), inputs.new_moments.get(name)
        if not isinstance(old, FullMoments | LowRankMoments) or not isinstance(now, type(old)):
            return None
        used = now.diagonal > 0
        own = self._of_map(
            replace(linear_map, width=int(used.sum())),
            replace(
                inputs,
                old_moments={**inputs.old_moments, name: old.of_inputs(used)},
                new_moments={**inputs.new_moments, name: now.of_inputs(used)},
            ),
        )
        if own is None or isinstance(own, Tensor):
            return own
        r = self.ridge * old.diagonal.mean()
        others = ((old.diagonal + r * self.mix) / (old.diagonal + r)).nan_to_num(0.0)
        return UsedInputsCoefficient(linear_map, used, own, others)

    def _of_map(self, linear_map: LinearMap, inputs: MergeInputs) -> Coefficient | None:
        """Return a map's coefficient; None where it computed nothing."""
        old, now = (m.get(linear_map.name) for m in (inputs.old_moments, inputs.new_moments))
        if old is None or now is None:
            return None
        if isinstance(old, RowCounts) and isinstance(now, RowCounts):
            r = self.ridge * old.counts.mean()
            kept = old.counts + r * self.mix
            taken = kept / (old.counts + self.new_inputs * now.counts + r)
            return taken.nan_to_num(0.0)[:, None]
        balance = Balance(self.new_inputs / inputs.keep, self.ridge, self.mix)
        solved = solve_map(linear_map, old, now, balance)
        return 0.0 if solved is None else solved


__getattr__ = renamed_names("rule", "0.1.0", "0.3.0", SubspaceRule=Subspace)
