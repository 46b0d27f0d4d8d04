"""Coefficients that are matrices, by which input directions earlier tasks used."""

import math

from torch import Tensor

from recall_lightning.merging.map_coefficients import Balance, MapCoefficient, solve_map
from recall_lightning.merging.rules.base import MergeInputs, MergeRule
from recall_lightning.representations.moments import RowCounts


class SubspaceRule(MergeRule):
    """Keep each linear map's outputs on old inputs, and the live model's on new ones.

    The coefficient of a linear map is the matrix A of
    :class:`~recall_lightning.merging.map_coefficients.FullCoefficient`, of an embedding the same
    row by row with lookup counts as moments, (c_old + r·s) / (c_old + λ·c_new + r). All other
    weights (norms, positions, matrices that are no linear map) get the number that this is for an
    input of 1 in all tasks: (k + ε·s) / (k + λ + ε) after k tasks. Source: RegMean (arXiv
    2212.09849), eq. 2; old moments are sums over tasks.

    Args:
        new_inputs: λ > 0: what the current task's inputs count against those of earlier tasks.
            Larger keeps less of the old.
        ridge: ε > 0, relative to the mean of the moments' diagonal.
        mix: s in [0, 1]: the snapshot's weight in directions that no input has.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rule = SubspaceRule(new_inputs=4.0)
        >>> rule.uses_moments, rule.uses_representations
        (True, False)
    """

    uses_representations = False
    uses_moments = True

    def __init__(self, new_inputs: float = 1.0, ridge: float = 0.01, mix: float = 0.3) -> None:
        for name, value in (("new_inputs", new_inputs), ("ridge", ridge)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be a positive number")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix={mix!r} must lie in [0, 1]: the snapshot's weight")
        self.balance = Balance(new_inputs, ridge, mix)

    def coefficients(self, inputs: MergeInputs) -> dict[str, float | Tensor | MapCoefficient]:
        """Return a matrix for every linear map, a tensor for embeddings, a number for the rest."""
        new, ridge, mix = self.balance.new, self.balance.ridge, self.balance.mix
        tasks = inputs.earlier_tasks
        plain = (tasks + ridge * mix) / (tasks + new + ridge)
        weights: dict[str, float | Tensor | MapCoefficient] = {
            name: plain for block in inputs.blocks for name in block.weights
        }
        for linear_map in inputs.maps:
            old, now = (m.get(linear_map.weight) for m in (inputs.old_moments, inputs.new_moments))
            if old is None or now is None:
                continue  # it computed nothing
            if isinstance(old, RowCounts) and isinstance(now, RowCounts):
                r = ridge * old.counts.mean()
                kept = (old.counts + r * mix) / (old.counts + new * now.counts + r)
                weights[linear_map.weight] = kept.nan_to_num(0.0)[:, None]
                continue
            solved = solve_map(linear_map, old, now, self.balance)
            names = [linear_map.weight, linear_map.bias, linear_map.second_factor]
            weights |= {n: 0.0 if solved is None else solved for n in names if n is not None}
        return weights
