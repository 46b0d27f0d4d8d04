"""Spherical interpolation between two models."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.merging.functional.linear import linear
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import (
    check_models,
    check_shares,
    rounded,
    working_dtype,
)


def slerp(
    models: Sequence[Tensor], weights: Sequence[float], *, parallel_threshold: float = 0.9995
) -> Tensor:
    """Go from one model to another along the arc: sin((1−t)φ)/sin φ · θ₁ + sin(tφ)/sin φ · θ₂.

    t = w₂ / (w₁ + w₂), φ the angle between the two tensors taken as vectors. Where these are
    parallel or opposite, cos φ beyond ± ``parallel_threshold``, or one is all zeros, the arc is not
    defined or too ill-conditioned, and the result is linear, (1−t)·θ₁ + t·θ₂. For 0.9995, which
    other tools use too, the two formulas meet within 1.3e-4 of the norm on the parallel side;
    fine-tuned models are mostly beyond it. Source: Shoemake (SIGGRAPH 1985).

    Args:
        models: The weight tensor of exactly two models, of one shape.
        weights: Two numbers, not negative; their ratio sets t.
        parallel_threshold: The size of cos φ above which it is linear, in [0, 1).

    Returns:
        A new tensor in the dtype of the first model. Computed in float32, in float64 where an
        input is; rounded once.

    Raises:
        ValueError: If there are not two models, shapes differ, or anything is not floating point,
            not finite or outside its range.

    Example:
        >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], [0.5, 0.5])
        tensor([0.7071, 0.7071])
    """
    check_models(models, weights)
    check_shares(weights)
    if len(models) != 2:
        raise ValueError(f"slerp goes between exactly 2 models, not {len(models)}: use linear")
    if not 0 <= parallel_threshold < 1:
        raise ValueError(f"parallel_threshold={parallel_threshold!r} must lie in [0, 1)")
    t = weights[1] / (weights[0] + weights[1])
    first, second = (m.detach().to(models[0].device, working_dtype(models)) for m in models)
    cosine = _cosine(first, second)
    if not abs(cosine) <= parallel_threshold:  # also for NaN, of a tensor that is all zeros
        return linear(models, [1 - t, t])
    angle = math.acos(cosine)
    near, far = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
    return rounded(near * first + far * second, models[0])


def _cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine between two tensors; NaN where one is all zeros."""
    norms = [torch.linalg.vector_norm(side, dtype=torch.float64) for side in (first, second)]
    return float((first * second).sum(dtype=torch.float64) / norms[0] / norms[1])


SLERP = MergeMethod(slerp, normalize=True, most_models=2)
