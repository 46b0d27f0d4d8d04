"""Methods that add up task vectors, δ = θ − base: arithmetic, TIES, DARE, breadcrumbs."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from recall_lightning.checks import check_choice
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import (
    check_count,
    check_models,
    rounded,
    working_dtype,
)
from recall_lightning.merging.functional.sparsification import (
    Rescale,
    magnitude_mask,
    random_mask,
    rescaled,
)

Elect = Literal["sum", "weighted_sum", "count"]
Divide = Literal["count", "weights", "none"]
Combine = Literal["linear", "ties"]


def task_arithmetic(
    models: Sequence[Tensor], weights: Sequence[float], base: Tensor, *, scale: float = 1.0
) -> Tensor:
    """Add weighted task vectors to the base: base + scale · Σᵢ wᵢ (θᵢ − base).

    A negative weight takes a task away. Source: Ilharco et al. (arXiv 2212.04089).

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, used as given.
        base: The tensor that the models started from.
        scale: Multiplies the sum (λ of the paper).

    Returns:
        A new tensor in the dtype of the first model. Computed in float32, in float64 where an
        input is; rounded once.

    Raises:
        ValueError: If counts or shapes differ, or anything is not floating point or not finite.

    Example:
        >>> base = torch.tensor([1.0, 1.0])
        >>> task_arithmetic([torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])], [1, 0.5], base)
        tensor([2., 2.])
    """
    _check(models, weights, base, scale)
    origin, deltas = _task_vectors(models, base)
    return rounded(origin + scale * _weighted_sum(deltas, weights), models[0])


def ties(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    *,
    density: float,
    elect: Elect = "sum",
    divide: Divide = "count",
    scale: float = 1.0,
) -> Tensor:
    """Trim task vectors, elect a sign for every entry, and merge those that agree with it.

    Of each δᵢ the int(density · n) largest magnitudes are kept, at least one. An entry takes part
    where its sign is the elected one; a vote of 0 elects +, and a zero entry never takes part.
    Source: TIES-Merging, Yadav et al. (arXiv 2306.01708), algorithm 1.

    Where tools differ, in order of the arguments: the paper trims over the whole model at once;
    here, in PEFT and in mergekit it is tensor by tensor. The paper and PEFT (``"total"``) elect by
    the unweighted sum, mergekit (``"sum"``) by the weighted one; PEFT's ``"frequency"`` is
    ``"count"`` here, and mergekit's ``"count"`` the same for positive weights. The paper and PEFT
    divide by the count of those that agree (PEFT having weighted them first), mergekit with
    ``normalize`` by the sum of their weights, without it not at all. On a vote of 0 the authors'
    code takes the majority of the other entries' signs; +, as here, is PEFT's and mergekit's.

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model.
        base: The tensor that the models started from.
        density: The share of entries that each task vector keeps, in (0, 1].
        elect: The sign of Σ δᵢ (``"sum"``), of Σ wᵢδᵢ (``"weighted_sum"``; then wᵢδᵢ must agree
            with it) or of Σ sign δᵢ (``"count"``).
        divide: Σ wᵢδᵢ over those that agree is divided by their ``"count"``, by the sum of their
            ``"weights"`` (not at all where these cancel to 0), or by nothing (``"none"``).
        scale: Multiplies the merged task vector (λ of the paper).

    Returns:
        A new tensor in the dtype of the first model, see :func:`task_arithmetic`.

    Raises:
        ValueError: As :func:`task_arithmetic`; or for a ``density`` or convention that is unknown.

    Example:
        >>> models = [torch.tensor([4.0, 1.0, 3.0]), torch.tensor([2.0, 1.0, -5.0])]
        >>> ties(models, [1, 1], torch.zeros(3), density=0.7)
        tensor([ 3.,  0., -5.])
    """
    _check(models, weights, base, scale)
    _check_conventions(elect, divide)
    origin, deltas = _task_vectors(models, base)
    trimmed = [delta * magnitude_mask(delta, density) for delta in deltas]
    return rounded(origin + scale * _merge_agreeing(trimmed, weights, elect, divide), models[0])


def dare(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    name: str = "",
    model_keys: Sequence[str] | None = None,
    *,
    density: float,
    rescale: Rescale = "density",
    combine: Combine = "linear",
    elect: Elect = "sum",
    divide: Divide = "count",
    seed: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Drop entries of the task vectors at random, rescale the rest, and add them up.

    Every mask is a draw of its own, keyed by seed, parameter name and model, on the CPU: the
    result depends neither on the order of the parameters nor on their files, shards or device.
    A small tensor may lose all its entries; the expectation over seeds is still δ. Source: DARE,
    Yu et al. (arXiv 2311.03099); drop rate p = 1 − density.

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, used as given.
        base: The tensor that the models started from.
        name: The parameter's name.
        model_keys: What identifies each model, such as its path; its index unless given. With keys
            of their own models can change places without changing masks.
        density: The probability with which an entry is kept, in (0, 1].
        rescale: ``"density"`` divides by it (the paper, PEFT, older mergekit); ``"l1"``
            restores each task vector's L1 norm (newer mergekit); ``"none"`` does nothing.
        combine: ``"linear"`` for Σ wᵢδᵢ, ``"ties"`` for TIES' election and merge (no trimming).
        elect: For ``"ties"`` alone, see :func:`ties`.
        divide: For ``"ties"`` alone, see :func:`ties`.
        seed: Another one draws other masks.
        scale: Multiplies the merged task vector.

    Returns:
        A new tensor in the dtype of the first model, see :func:`task_arithmetic`.

    Raises:
        ValueError: As :func:`task_arithmetic`; or for a ``density`` or convention that is unknown.

    Example:
        >>> dare([torch.ones(6)], [1.0], torch.zeros(6), "head.bias", density=0.5)
        tensor([2., 2., 0., 2., 0., 0.])
    """
    _check(models, weights, base, scale)
    _check_conventions(elect, divide)
    check_choice("rescale", rescale, *get_args(Rescale))
    check_choice("combine", combine, *get_args(Combine))
    keys = [str(i) for i in range(len(models))] if model_keys is None else model_keys
    check_count("model_keys", keys, models)
    origin, deltas = _task_vectors(models, base)
    masks = (random_mask(origin.shape, density, seed, name, key).to(origin.device) for key in keys)
    dropped = (
        rescaled(delta * mask, delta, density, rescale)
        for delta, mask in zip(deltas, masks, strict=True)
    )
    if combine == "ties":
        merged = _merge_agreeing(list(dropped), weights, elect, divide)
    else:
        merged = _weighted_sum(dropped, weights)
    return rounded(origin + scale * merged, models[0])


def breadcrumbs(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    *,
    density: float,
    gamma: float,
    scale: float = 1.0,
) -> Tensor:
    """Cut both tails of the task vectors' magnitudes, outliers and noise, and add up the rest.

    Of each δᵢ with n entries the int(gamma · n) largest magnitudes are cut, then the smallest, so
    that int(density · n), at least one, are left. Source: Model Breadcrumbs, Davari and Belilovsky
    (arXiv 2312.06795), which names the shares cut at both ends: here the upper one is ``gamma``
    and the lower one 1 − density − gamma, as in mergekit. The authors' code cuts every row on its
    own; here, and in mergekit, the tensor is cut as a whole.

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, used as given.
        base: The tensor that the models started from.
        density: The share of entries that is kept, in (0, 1].
        gamma: The share of entries cut at the top, in [0, 1); 0.01 is usual.
        scale: Multiplies the sum (α of the paper).

    Returns:
        A new tensor in the dtype of the first model, see :func:`task_arithmetic`.

    Raises:
        ValueError: As :func:`task_arithmetic`; or if ``density`` or ``gamma`` lies outside its
            range, or together they exceed 1.

    Example:
        >>> model = torch.tensor([1.0, -4.0, 3.0, 0.5])
        >>> breadcrumbs([model], [1.0], torch.zeros(4), density=0.5, gamma=0.25)
        tensor([1., 0., 3., 0.])
    """
    _check(models, weights, base, scale)
    origin, deltas = _task_vectors(models, base)
    middle = (delta * magnitude_mask(delta, density, gamma) for delta in deltas)
    return rounded(origin + scale * _weighted_sum(middle, weights), models[0])


def _check(models: Sequence[Tensor], weights: Sequence[float], base: Tensor, scale: float) -> None:
    check_models(models, weights, base)
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale!r} must be a finite number")


def _task_vectors(models: Sequence[Tensor], base: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
    """Return the base and, one at a time, every θ − base, in the precision to compute in."""
    device, dtype = models[0].device, working_dtype([*models, base])
    origin = base.detach().to(device, dtype)
    return origin, (model.detach().to(device, dtype) - origin for model in models)


def _weighted_sum(terms: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    weighted = zip(terms, weights, strict=True)
    term, weight = next(weighted)
    total = term * weight
    for term, weight in weighted:
        total.add_(term, alpha=weight)
    return total


def _check_conventions(elect: str, divide: str) -> None:
    check_choice("elect", elect, *get_args(Elect))
    check_choice("divide", divide, *get_args(Divide))


def _merge_agreeing(
    deltas: Sequence[Tensor], weights: Sequence[float], elect: Elect, divide: Divide
) -> Tensor:
    """Elect a sign for every entry and merge the task vectors where they have it."""
    agree = _agreeing(deltas, weights, elect)
    merged = _weighted_sum((d * mask for d, mask in zip(deltas, agree, strict=True)), weights)
    if divide == "none":
        return merged
    masks = [mask.to(merged.dtype) for mask in agree]
    if divide == "count":
        return merged / _weighted_sum(masks, [1.0] * len(masks)).clamp(min=1)
    total = _weighted_sum(masks, weights)
    size = _weighted_sum(masks, [abs(weight) for weight in weights])
    return merged / total.masked_fill(total.abs() <= 1e-6 * size, 1)  # also where none agrees


def _agreeing(deltas: Sequence[Tensor], weights: Sequence[float], elect: Elect) -> list[Tensor]:
    """Mark, for every task vector, the entries whose sign is the elected one."""
    if elect == "weighted_sum":
        deltas = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    # in float64 a sum of float32 hardly ever rounds, so that the models' order elects no other sign
    vote = torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta in deltas:
        vote += delta.sign() if elect == "count" else delta
    elected = torch.where(vote >= 0, 1, -1)
    return [delta.sign() == elected for delta in deltas]


TASK_ARITHMETIC = MergeMethod(task_arithmetic)
TIES = MergeMethod(ties)
DARE = MergeMethod(dare)
BREADCRUMBS = MergeMethod(breadcrumbs)
