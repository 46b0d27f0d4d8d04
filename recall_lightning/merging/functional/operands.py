"""What the merge methods share: checks of what goes in, the precision between, the rounding out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.weights.finite import all_finite


def check_models(
    models: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None
) -> None:
    """Check one weight tensor of every model, and one finite number for each.

    Raises:
        ValueError: If there is no model, the counts or shapes differ, a tensor does not hold
            floating-point numbers, or anything is NaN or infinite.

    Example:
        >>> check_models([torch.ones(2), torch.ones(3)], [0.5, 0.5])
        Traceback (most recent call last):
        ValueError: models[1] has the shape (3,) and models[0] (2,): one architecture is needed
    """
    check_numbers("weights", weights, models)
    check_alike("models", models, models)
    if base is not None:
        _check_tensor("base", base, models[0].shape)


def check_numbers(label: str, numbers: Sequence[float], models: Sequence[Tensor]) -> None:
    """Check that there are models, and one finite number for each.

    Raises:
        ValueError: If there are not.

    Example:
        >>> check_numbers("weights", [0.5], [])
        Traceback (most recent call last):
        ValueError: there is no model to merge: give at least one
    """
    if not models:
        raise ValueError("there is no model to merge: give at least one")
    check_count(label, numbers, models)
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"{label}[{index}]={number!r} must be a finite number")


def check_shares(weights: Sequence[float]) -> None:
    """Check weights that only count relative to one another: none below 0, one above.

    Raises:
        ValueError: If a weight is negative or all are 0.

    Example:
        >>> check_shares([1, -1])
        Traceback (most recent call last):
        ValueError: weights=[1, -1] must not be negative and not all 0 here
    """
    if min(weights) < 0 or max(weights) <= 0:
        raise ValueError(f"weights={list(weights)} must not be negative and not all 0 here")


def check_count(label: str, items: Sequence[object], models: Sequence[Tensor]) -> None:
    """Check that there is one of ``items`` for each model.

    Raises:
        ValueError: If there is not.
    """
    if len(items) != len(models):
        raise ValueError(
            f"{label} has {len(items)} entries for {len(models)} models: give one each"
        )


def check_alike(label: str, tensors: Sequence[Tensor], models: Sequence[Tensor]) -> None:
    """Check that there is one of ``tensors`` for each model, in the models' shape and finite.

    Raises:
        ValueError: If there is not.
    """
    check_count(label, tensors, models)
    for index, tensor in enumerate(tensors):
        _check_tensor(f"{label}[{index}]", tensor, models[0].shape)


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return what to compute in: float64 where one of ``tensors`` is, float32 otherwise.

    Example:
        >>> working_dtype([torch.ones(1, dtype=torch.bfloat16)])
        torch.float32
    """
    doubles = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if doubles else torch.float32


def rounded(merged: Tensor, like: Tensor) -> Tensor:
    """Round a merged weight, once, to the dtype of ``like``.

    Raises:
        ValueError: If a value is too large for that dtype.

    Example:
        >>> rounded(torch.tensor([1e6]), torch.ones(1, dtype=torch.float16))
        Traceback (most recent call last):
        ValueError: the merged weight exceeds torch.float16: lower the weights or the scale
    """
    merged = merged.to(like.dtype)
    if not all_finite(merged):
        raise ValueError(f"the merged weight exceeds {like.dtype}: lower the weights or the scale")
    return merged


def _check_tensor(label: str, tensor: Tensor, shape: torch.Size) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"{label} holds {tensor.dtype}, and must hold floating-point weights: copy the others"
        )
    if tensor.shape != shape:
        raise ValueError(
            f"{label} has the shape {tuple(tensor.shape)} and models[0] {tuple(shape)}: "
            "one architecture is needed"
        )
    if not all_finite(tensor):
        raise ValueError(f"{label} holds NaN or infinite values, and must be finite")
