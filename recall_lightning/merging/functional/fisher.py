"""Averages by the Fisher information: how much each model depends on every entry."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import (
    check_alike,
    check_models,
    check_shares,
    rounded,
)
from recall_lightning.weights.chunks import chunk_size


def fisher(
    models: Sequence[Tensor], weights: Sequence[float], importances: Sequence[Tensor]
) -> Tensor:
    """Average every entry by how much each model depends on it: Σ wᵢFᵢθᵢ / Σ wᵢFᵢ.

    Where no model has any importance the entry is the plain average Σ wᵢθᵢ / Σ wᵢ. Source: Fisher
    merging, Matena and Raffel (arXiv 2111.09832), with the diagonal of the Fisher information.

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, not negative; they count relative to one another.
        importances: Of each model, F ≥ 0 in the shape of its weight: mean squared gradients, or
            what Adam holds as ``exp_avg_sq``.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64, in chunks; rounded once.

    Raises:
        ValueError: If counts or shapes differ, anything is not floating point or not finite, or a
            weight or an importance is negative.

    Example:
        >>> models = [torch.tensor([0.0, 2.0]), torch.tensor([1.0, 4.0])]
        >>> fisher(models, [1, 1], [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])])
        tensor([0.7500, 3.0000])
    """
    check_models(models, weights)
    check_shares(weights)
    check_alike("importances", importances, models)
    for index, tensor in enumerate(importances):
        if bool((tensor < 0).any()):
            raise ValueError(f"importances[{index}] holds negative values: give squared gradients")
    device = models[0].device
    size = chunk_size(device)
    parts = [t.detach().to(device).reshape(-1).split(size) for t in (*models, *importances)]
    merged = torch.empty(models[0].shape, dtype=models[0].dtype, device=device)
    for out, *chunks in zip(merged.view(-1).split(size), *parts, strict=True):
        values, shares = chunks[: len(models)], chunks[len(models) :]
        out.copy_(_weighted_average(values, shares, weights))
    return rounded(merged, models[0])


def _weighted_average(
    values: Sequence[Tensor], importances: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    shares = [weight * f.double() for f, weight in zip(importances, weights, strict=True)]
    total = torch.stack(shares).sum(0)
    merged = torch.zeros_like(total)
    for value, share, weight in zip(values, shares, weights, strict=True):
        merged += value * torch.where(total > 0, share / total, weight / sum(weights))
    return merged


FISHER = MergeMethod(
    fisher,
    normalize=True,
    statistics="importances",
    former_name="importance",
)
