"""The last layer of a classifier, fitted to what it predicted before and predicts now."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ITERATIONS = 100
_TOLERANCE = 1e-6  # of the loss, or of any weight
_RIDGE = 1e-4  # of the mean square of an input's length


@dataclass(frozen=True)
class Predicted:
    """Inputs of a layer, and what is to be predicted of them.

    Attributes:
        inputs: (inputs, width) float32.
        probabilities: Of the classes, (inputs, classes) float32.
    """

    inputs: Tensor
    probabilities: Tensor


def fitted_head(
    weight: Tensor,
    bias: Tensor | None,
    old: Predicted,
    new: Predicted,
    keep: float,
    mean: Callable[[Tensor], Tensor] = torch.clone,
) -> tuple[Tensor, Tensor | None]:
    """Return the layer that predicts best what was predicted of old inputs and is of new ones.

    That is the minimum of (keep · H_old + H_new) / (keep + 1) + ridge ‖θ − θ_merged‖², H the mean
    cross-entropy to the given probabilities: the losses themselves, without the curvature that
    stands for them in a merge. It is convex; L-BFGS finds it. A merge by curvature sees next to
    none along what a confident softmax does not depend on, such as how far all logits of new
    classes lie above those of the old: here that counts.

    Args:
        weight: The merged one, (classes, width), which is what is left where nothing speaks.
        bias: Its bias, (classes).
        old: What was predicted of inputs of earlier tasks.
        new: What is predicted of those of the current one.
        keep: What the old counts against the new, ≥ 0.
        mean: Averages over processes, each of which has its own ``new``.

    Returns:
        Weight and bias, float32; those of the start where inputs are not finite.

    Example:
        >>> inputs, classes = torch.tensor([[1.0], [-1.0]]), torch.eye(2)
        >>> old, new = Predicted(inputs, classes), Predicted(inputs, classes.flip(0))
        >>> fitted = lambda keep: fitted_head(torch.zeros(2, 1), None, old, new, keep)[0]
        >>> bool(fitted(1e3)[0] > 1), bool(fitted(1e-3)[0] < -1), bool(fitted(1.0)[0].abs() < 1e-3)
        (True, True, True)
    """
    start = [weight.detach().float()] + ([] if bias is None else [bias.detach().float()])
    ridge = _RIDGE * mean(new.inputs.square().sum(dim=1).mean())
    if not math.isfinite(float(ridge + old.inputs.sum())):
        return start[0], start[1] if bias is not None else None
    with torch.enable_grad():
        fitted = [each.clone().requires_grad_() for each in start]
        search = torch.optim.LBFGS(
            fitted, max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=_TOLERANCE
        )

        def entropy(of: Predicted) -> Tensor:
            logits = functional.linear(of.inputs, *fitted)
            return functional.cross_entropy(logits, of.probabilities)

        def loss() -> Tensor:
            away = sum((now - then).square().sum() for now, then in zip(fitted, start, strict=True))
            total = (keep * entropy(old) + entropy(new)) / (keep + 1) + ridge * away
            flat = [grad.flatten() for grad in torch.autograd.grad(total, fitted)]
            together = mean(torch.cat([total.detach()[None], *flat]))
            sizes = [1, *(each.numel() for each in fitted)]
            value, *gradients = together.split(sizes)
            for each, gradient in zip(fitted, gradients, strict=True):
                each.grad = gradient.view_as(each)
            return value[0]

        search.step(loss)
    found = [each.detach() for each in fitted]
    return found[0], found[1] if bias is not None else None


def spread(inputs: Predicted, number: int, generator: torch.Generator) -> Predicted:
    """Put about so many inputs in the place of a few, each around one of those.

    They are drawn with half the standard deviation that inputs of one class have, as far as the few
    tell it: half of their covariance and half of a multiple of the identity (a smoothed bootstrap).
    Fewer inputs than their width could all be told apart, whatever a layer has learned.

    Args:
        inputs: The few.
        number: How many there are to be, at least; no fewer than there are come back.
        generator: Draws them, on the CPU.
    """
    given, classes = inputs.inputs, inputs.probabilities.argmax(dim=1)
    sums = given.new_zeros(inputs.probabilities.shape[1], given.shape[1])
    counts = classes.bincount(minlength=len(sums)).clamp(min=1)
    within = given - (sums.index_add_(0, classes, given) / counts[:, None])[classes]
    times = -(-number // len(given))
    repeated = given.repeat(times, 1)
    of_inputs = torch.randn(len(repeated), len(given), generator=generator, dtype=given.dtype)
    alike = torch.randn(repeated.shape, generator=generator, dtype=given.dtype)
    size = within.square().mean().sqrt()
    noise = of_inputs.to(given) @ within / len(given) ** 0.5 + size * alike.to(given)
    return Predicted(repeated + 0.5 * 0.5**0.5 * noise, inputs.probabilities.repeat(times, 1))
