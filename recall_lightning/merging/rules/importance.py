"""Coefficients by how much earlier tasks depend on each parameter."""

import math

from recall_lightning.deprecation import renamed_names
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.rules.base import MergeInputs, MergeRule
from recall_lightning.weights.sharding import local, total


class Importance(MergeRule):
    """Element by element w = λF / (1 + λF), with F the importance to earlier tasks, of mean 1.

    This is the proximal step of a quadratic penalty λF/2 · (θ − θ_snapshot)², which within a task
    has the size of the optimizer steps since the last merge. The two factors of a LoRA update,
    which is merged as their product, share their mean. What has no importance, such as running
    statistics, has F = 1. Source: Fisher merging (arXiv 2111.09832) and elastic weight
    consolidation (arXiv 1612.00796), with the diagonal of the empirical Fisher information.

    Args:
        scale: λ > 0. Larger keeps more of the old.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Raises:
        ValueError: For an argument out of its range.

    Example:
        >>> import torch
        >>> from recall_lightning.measuring.blocks import Block
        >>> from recall_lightning.merging.structure import Structure
        >>> inputs = MergeInputs(
        ...     Structure([Block("0", 2, 1.0, "0", ("0.weight",))]),
        ...     importance={"0.weight": torch.tensor([0.0, 2.0])},
        ... )
        >>> Importance(0.5).coefficients(inputs)
        {'0.weight': tensor([0.0000, 0.5000])}
    """

    name = "importance"
    needs = frozenset({"importance"})
    is_proximal = True

    def __init__(self, scale: float = 0.1, strength: Setting = 1.0) -> None:
        super().__init__(strength)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale!r} must be a positive number")
        self.scale = scale

    def coefficients(self, inputs: MergeInputs) -> dict[str, Coefficient]:
        """Return a tensor of its shape for every weight, or a number where it has no importance."""
        shared: dict[str, float] = {}
        for pair in inputs.lora_pairs:
            factors = [inputs.importance[n] for n in (pair.a, pair.b) if n in inputs.importance]
            size = sum(factor.numel() for factor in factors)
            sums = [total(float(local(f).double().sum()), f) for f in factors]  # f may be sharded
            mean = sum(sums) / size if size else 1.0
            shared |= {pair.a: mean, pair.b: mean}
        weights: dict[str, Coefficient] = {}
        for name in inputs.structure.weights:
            given = shared.get(name, inputs.importance.get(name, 1.0))
            weighted = self.scale * given
            weights[name] = weighted / (1 + weighted)
        return weights


__getattr__ = renamed_names("rule", "0.1.0", "0.3.0", ImportanceRule=Importance)
