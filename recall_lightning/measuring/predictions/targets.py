"""What the numbers of targets and outputs may stand for."""

import torch
from torch import Tensor


def have_shape_of(outputs: Tensor, target: Tensor) -> bool:
    """Tell whether targets have a number for every output, but maybe for a last axis of 1."""
    without_last = outputs.shape[:-1] if outputs.shape[-1] == 1 else outputs.shape
    return target.shape in (outputs.shape, without_last)


def are_integers(target: Tensor) -> bool:
    """Tell whether targets may be classes by their dtype."""
    return not (target.is_floating_point() or target.is_complex() or target.dtype is torch.bool)


def are_zeros_and_ones(target: Tensor) -> bool:
    """Tell whether targets hold nothing but 0 and 1.

    Example:
        >>> are_zeros_and_ones(torch.tensor([0.0, 1.0])), are_zeros_and_ones(torch.tensor([2]))
        (True, False)
    """
    return bool(((target == 0) | (target == 1)).all())


def are_fractions(target: Tensor) -> bool:
    """Tell whether targets lie between 0 and 1."""
    return not target.is_complex() and bool(((target >= 0) & (target <= 1)).all())


def are_distributions(numbers: Tensor) -> bool:
    """Tell whether numbers are probabilities of several classes, whose last axis sums to 1.

    Example:
        >>> are_distributions(torch.eye(3)), are_distributions(torch.ones(2, 3))
        (True, False)
    """
    if numbers.is_complex() or numbers.dim() < 2 or numbers.shape[-1] < 2 or not len(numbers):
        return False
    sums = numbers.detach().float().sum(-1)
    coarse = numbers.dtype in (torch.float16, torch.bfloat16)
    whole = bool(((sums - 1).abs() < (0.02 if coarse else 1e-3)).all())
    return whole and bool((numbers >= 0).all())


def are_probabilities(outputs: Tensor) -> bool:
    """Tell by the last operation whether outputs come from a sigmoid or softmax.

    Their values do not tell: logits may lie between 0 and 1, too.

    Example:
        >>> logits = torch.zeros(2, 1, requires_grad=True)
        >>> are_probabilities(logits.sigmoid().squeeze(1)), are_probabilities(logits)
        (True, False)
    """
    step = outputs.grad_fn
    while step is not None and step.name().startswith(RESHAPING):
        step = step.next_functions[0][0]
    return step is not None and step.name().startswith(_PROBABILITIES)


_PROBABILITIES = ("Sigmoid", "Softmax")
RESHAPING = (
    "Alias",
    "Clone",
    "Expand",
    "Permute",
    "Reshape",
    "Select",
    "Slice",
    "Squeeze",
    "ToCopy",
    "Transpose",
    "UnsafeView",
    "Unsqueeze",
    "View",
)
