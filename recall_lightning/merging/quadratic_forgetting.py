"""What a model has forgotten of earlier tasks, estimated from what is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from recall_lightning.measuring.linear_maps import LinearMap, as_matrix
from recall_lightning.measuring.moments import Moments, RowCounts
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules.base import MergeInputs
from recall_lightning.weights.sharding import is_sharded


def quadratic_forgetting(
    inputs: MergeInputs,
    weights: Mapping[str, Tensor] | None = None,
    refitted: str | None = None,
) -> float | None:
    """Return KL(snapshot ‖ model) on earlier tasks' inputs to second order, in nats a prediction.

    That is ½ Σ tr(G D X Dᵀ) over linear maps: D is their difference from the snapshot, X the
    moments of their inputs and G those of the gradients at their outputs, means over earlier tasks.
    It is the Kronecker-factored curvature (Martens and Grosse, arXiv 1503.05671), and needs no
    sample. It ranks models; where predictions have gone far, the divergence itself is smaller.

    Args:
        inputs: What a merge is decided from.
        weights: Name to weight; by default the live ones.
        refitted: The name of a layer that is left out, as it is fitted anew to inputs that move: it
            goes far from the snapshot's to predict what that did.

    Returns:
        None where nothing is known at maps' outputs, or weights are sharded.

    Example:
        >>> from recall_lightning.measuring.moments import FullMoments
        >>> from recall_lightning.merging.structure import Structure
        >>> one = FullMoments(torch.eye(1), torch.ones(()))
        >>> structure = Structure(maps=[LinearMap("w", None, "linear", ("",), 1)])
        >>> weights = {"live": {"w": torch.tensor([[3.0]])}, "snapshot": {"w": torch.zeros(1, 1)}}
        >>> known = {"old_moments": {"w": one}, "old_output_moments": {"w": one}}
        >>> quadratic_forgetting(MergeInputs(structure, **weights, **known, curvature_mean=2.0))
        9.0
    """
    weights = inputs.live if weights is None else weights
    pairs = {pair.a: pair for pair in inputs.lora_pairs}
    tasks, forms = inputs.earlier_tasks, []
    for one in inputs.maps:
        sides = inputs.old_moments.get(one.name), inputs.old_output_moments.get(one.name)
        if sides[0] is None or sides[1] is None or refitted in one.modules:
            continue
        if not _is_there(one, inputs.snapshot, weights):
            continue
        given = (one, pairs.get(one.weight), sides[0], sides[1])
        forms.append(_quadratic_form(*given, weights, inputs.snapshot))
    if not forms or not math.isfinite(inputs.curvature_mean):
        return None
    # of sums over tasks, and each task's curvature was divided by its own mean
    together = torch.stack([form.to(forms[0].device) for form in forms]).sum()
    return 0.5 * float(together) * inputs.curvature_mean / tasks**3


def _is_there(one: LinearMap, *models: Mapping[str, Tensor]) -> bool:
    names = [name for name in (one.weight, one.bias, one.second_factor) if name is not None]
    there = all(name in model for model in models for name in names)
    return there and not any(is_sharded(model[name]) for model in models for name in names)


def _quadratic_form(
    one: LinearMap,
    pair: LoraPair | None,
    inputs: Moments,
    outputs: Moments,
    now: Mapping[str, Tensor],
    then: Mapping[str, Tensor],
) -> Tensor:
    """Return tr(G D X Dᵀ), (); of an update without a matrix of its layer's size."""
    device = inputs.trace.device
    if pair is not None:
        new, old = (
            pair.factors({n: m[n].to(device) for n in (pair.a, pair.b)}) for m in (now, then)
        )
        left = torch.cat([new.scale * new.b, -old.scale * old.b], dim=1).float()
        right = torch.cat([new.a, old.a]).float()
        sides = left.T @ outputs.times(left), right @ inputs.times(right.T)
        return (sides[0] * sides[1]).sum()
    difference = (as_matrix(one, now).to(device) - as_matrix(one, then).to(device)).float()
    if isinstance(inputs, RowCounts):  # (rows, dimension)
        difference = difference.T
    return (outputs.times(difference) * inputs.times(difference.T).T).sum()
