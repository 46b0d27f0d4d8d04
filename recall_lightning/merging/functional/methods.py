"""The merge methods by name, and those that need nothing but the models: linear, slerp, recall."""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recall_lightning.merging.coefficients.softmax import softmax_weights
from recall_lightning.merging.functional.in_place import weighted_sum_
from recall_lightning.merging.functional.operands import (
    check_models,
    check_numbers,
    check_shares,
    rounded,
    working_dtype,
)
from recall_lightning.merging.functional.second_moments import importance, subspace
from recall_lightning.merging.functional.task_vectors import (
    breadcrumbs,
    dare,
    task_arithmetic,
    ties,
)


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Add up weighted models: Σᵢ wᵢθᵢ.

    Source: model soups, Wortsman et al. (arXiv 2203.05482).

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, used as given: what sums to 1 averages.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64; rounded once.

    Raises:
        ValueError: If counts or shapes differ, or anything is not floating point or not finite.

    Example:
        >>> linear([torch.tensor([0.0, 4.0]), torch.tensor([4.0, 4.0])], [0.75, 0.25])
        tensor([1., 4.])
    """
    check_models(models, weights)
    merged = torch.empty_like(models[0], requires_grad=False)
    named = [{"": model.detach()} for model in models]
    weighted_sum_({"": merged}, named, weights, check_finite=False)
    return rounded(merged, models[0])


def slerp(
    models: Sequence[Tensor], weights: Sequence[float], *, parallel_threshold: float = 0.9995
) -> Tensor:
    """Go from one model to another along the arc: sin((1−t)φ)/sin φ · θ₁ + sin(tφ)/sin φ · θ₂.

    t = w₂ / (w₁ + w₂), φ the angle between the two tensors taken as vectors. Where these are
    parallel or opposite, |cos φ| > ``parallel_threshold``, or one is all zeros, the arc is not
    defined or too ill-conditioned, and the result is linear, (1−t)·θ₁ + t·θ₂. For 0.9995, which
    other tools use too, the two formulas meet within 1.3e-4 of the norm on the parallel side;
    fine-tuned models are mostly beyond it. Source: Shoemake (SIGGRAPH 1985).

    Args:
        models: The weight tensor of exactly two models, of one shape.
        weights: Two numbers, not negative; their ratio sets t.
        parallel_threshold: The |cos φ| above which it is linear, in [0, 1).

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


def recall(
    models: Sequence[Tensor], similarity: Sequence[float], *, temperature: float = 1.0
) -> Tensor:
    """Average models by how alike their hidden states are to the newest's: Σᵢ softmax(Sᵢ/τ) θᵢ.

    Source: RECALL (arXiv 2510.20479), merge coefficients and hierarchical merge.

    Args:
        models: One weight tensor of every model, all of one shape.
        similarity: S of each model in the block that the weight belongs to; the newest's own is 1.
        temperature: τ > 0; a smaller one leaves more to the models most alike.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64; rounded once.

    Raises:
        ValueError: If counts or shapes differ, anything is not floating point or not finite, or
            ``temperature`` is not positive.

    Example:
        >>> recall([torch.tensor([0.0]), torch.tensor([1.0])], [0.0, 1.0])
        tensor([0.7311])
    """
    check_numbers("similarity", similarity, models)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} must be a positive number")
    return linear(models, softmax_weights(similarity, temperature))


METHODS: dict[str, Callable[..., Tensor]] = {
    method.__name__: method
    for method in (
        linear,
        slerp,
        task_arithmetic,
        ties,
        dare,
        breadcrumbs,
        importance,
        subspace,
        recall,
    )
}


def method_named(name: str) -> Callable[..., Tensor]:
    """Return the merge method of that name.

    Raises:
        ValueError: If there is none.

    Example:
        >>> method_named("ties") is ties
        True
    """
    if name not in METHODS:
        raise ValueError(f"the method {name!r} is unknown: use {', '.join(METHODS)}")
    return METHODS[name]


def inputs_of(name: str) -> tuple[str, ...]:
    """Name what a method is given for each weight beside the models, in order.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> inputs_of("dare")
        ('weights', 'base', 'name', 'model_keys')
        >>> inputs_of("recall")
        ('similarity',)
    """
    parameters = inspect.signature(method_named(name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)[1:]


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return a method's own options, with their types and defaults.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> {option: p.default for option, p in options_of("subspace").items()}
        {'ridge': 0.01, 'off_diagonal_scale': 1.0}
    """
    parameters = inspect.signature(method_named(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def _cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine between two tensors; NaN where one is all zeros."""
    norms = [torch.linalg.vector_norm(side, dtype=torch.float64) for side in (first, second)]
    return float((first * second).sum(dtype=torch.float64) / norms[0] / norms[1])
