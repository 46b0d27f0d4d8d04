"""Coefficients by curvature: what earlier tasks depend on, in its own coordinates."""

import math
from dataclasses import replace
from typing import Literal

from recall_lightning.deprecation import renamed_names
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, LowRankMoments, Moments, RowCounts
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.coefficients.kronecker import KroneckerCoefficient
from recall_lightning.merging.coefficients.packed import of_weights
from recall_lightning.merging.rules.base import MergeInputs
from recall_lightning.merging.rules.importance import Importance
from recall_lightning.merging.rules.subspace import Subspace

_LEAST_RIDGE = 0.1  # of moments at outputs, and where nobody has measured how sure they are
_MOST_SHRUNK = 0.95  # or they would not tell at all


class KfacImportance(Importance):
    """w = λF / (1 + λF) as in :class:`Importance`, with the Fisher information of whole maps.

    F is the Kronecker product of a map's two factors, of mean 1 over the model for each task: the
    second moments of its inputs, and those of the gradients at its outputs (K-FAC, Martens and
    Grosse, arXiv 1503.05671). The coefficient is elementwise where that is diagonal: in the
    eigenbases of both. So a direction is kept, not an entry of a matrix. This is the proximal step
    of the penalty of Kronecker-factored online Laplace (Ritter et al., arXiv 1805.07810), with the
    sums over tasks of both factors.

    The curvature of a LoRA update is that of the layer that it is added to. All other weights, and
    maps whose curvature is not known (outputs that are no predictions), have what
    :class:`Importance` gives them.

    Args:
        scale: λ > 0. Larger keeps more of the old.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Example:
        >>> sorted(KfacImportance(0.5).needs)
        ['curvature', 'importance', 'moments']
    """

    name = "kfac_importance"
    needs = frozenset({"importance", "moments", "curvature"})
    end_rule = "kfac_subspace"

    def coefficients(self, inputs: MergeInputs) -> dict[str, Coefficient]:
        """Return a matrix for every linear map, and what importance gives for the rest."""
        weights = super().coefficients(inputs)
        of_maps = [(linear_map, self._of_map(linear_map, inputs)) for linear_map in inputs.maps]
        return weights | of_weights(of_maps, weights)

    def _of_map(self, linear_map: LinearMap, inputs: MergeInputs) -> Coefficient | None:
        """Return a map's coefficient; None where its curvature is not known."""
        old = inputs.old_moments.get(linear_map.name)
        outputs = inputs.old_output_moments.get(linear_map.name)
        if old is None or outputs is None:
            return None
        if linear_map.kind == "bag":  # row by row: what is not used is not moved
            if not isinstance(old, FullMoments | LowRankMoments):
                return None
            old = RowCounts(old.diagonal, old.count)
            linear_map = replace(linear_map, kind="embedding")
        scale = self.scale * inputs.keep
        return KroneckerCoefficient.of_importance(linear_map, old, outputs, scale)


class KfacSubspace(Subspace):
    """Keep what earlier tasks predicted, and what the live model predicts of the current one.

    As :class:`Subspace`, each linear map minimises its error on old inputs plus λ times that on
    new ones, but errors count by how much predictions depend on them: by the second moments of the
    gradients at the map's outputs, in the old tasks and in the new. The two quadratic losses are
    diagonal in common coordinates, so the minimum has a closed form. Source: merging by matching
    curvature (Tam et al., arXiv 2312.04339), of two models and with K-FAC (Martens and Grosse,
    arXiv 1503.05671).

    The curvature of a LoRA update is that of the layer that it is added to. All other weights, and
    maps whose curvature is not known (outputs that are no predictions), have what
    :class:`Subspace` gives them.

    Args:
        new_inputs: λ > 0: what the current task counts against each earlier one. Larger keeps less
            of the old.
        ridge: Added to the moments of inputs, relative to the mean of their diagonal.
        mix: That of :class:`Subspace`.
        output_ridge: Added to the moments at outputs, likewise. ``"auto"`` takes ρ / (1 − ρ), at
            least 0.1, with ρ the share by which those of the less certain side are best shrunk to
            their mean, as their spread over samples tells (Ledoit and Wolf, see
            :attr:`~recall_lightning.measuring.moments.MatrixMoments.shrinkage`). A model that has
            learned a task is sure of most of its samples, so that its gradients come from a few,
            which tell little of all other directions.
        strength: What multiplies the coefficients; see :class:`MergeRule`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sorted(KfacSubspace(new_inputs=2.0).needs)
        ['curvature', 'moments', 'new_moments']
    """

    name = "kfac_subspace"
    needs = frozenset({"moments", "new_moments", "curvature"})

    def __init__(
        self,
        new_inputs: float = 1.0,
        ridge: float = 0.01,
        mix: float = 0.3,
        output_ridge: float | Literal["auto"] = "auto",
        strength: Setting = 1.0,
    ) -> None:
        super().__init__(new_inputs, ridge, mix, strength)
        is_number = not isinstance(output_ridge, str)
        if output_ridge != "auto" and not (is_number and 0 < output_ridge < math.inf):
            raise ValueError(f"output_ridge={output_ridge!r} must be a positive number or 'auto'")
        self.output_ridge = output_ridge

    def _of_map(self, linear_map: LinearMap, inputs: MergeInputs) -> Coefficient | None:
        name = linear_map.name
        old, new = inputs.old_moments.get(name), inputs.new_moments.get(name)
        old_outputs = inputs.old_output_moments.get(name)
        new_outputs = inputs.new_output_moments.get(name)
        if old is None or new is None or old_outputs is None or new_outputs is None:
            return super()._of_map(linear_map, inputs)
        if not (old.trace > 0 and new.trace > 0):  # one side had no input, or it is not finite
            return super()._of_map(linear_map, inputs)
        return KroneckerCoefficient.between(
            linear_map,
            (old, new),
            (old_outputs, new_outputs),
            self.new_inputs / inputs.keep,
            (self.ridge, self._ridge_of(old_outputs, new_outputs)),
        )

    def _ridge_of(self, old: Moments, new: Moments) -> float:
        """Return what is added to both sides' moments at outputs, relative to their means."""
        if self.output_ridge != "auto":
            return self.output_ridge
        known = [s for s in (old.shrinkage, new.shrinkage) if s is not None and math.isfinite(s)]
        most = min(max(known, default=0.0), _MOST_SHRUNK)
        return max(most / (1 - most), _LEAST_RIDGE)


__getattr__ = renamed_names(
    "rule", "0.1.0", "0.3.0", KfacImportanceRule=KfacImportance, KfacSubspaceRule=KfacSubspace
)
