"""What a training loss tells of predictions: how it compares outputs with their targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recall_lightning.measuring.predictions.targets import RESHAPING


@dataclass(frozen=True)
class LossEvidence:
    """How a loss takes the outputs that it is made of.

    Attributes:
        kind: The name of the kind of prediction that it is −log p of, up to a constant and a scale.
        of_probabilities: Whether it takes outputs for probabilities, not for logits.
        classes_second: Whether classes are the outputs' second axis, as those of images are.
    """

    kind: str
    of_probabilities: bool = False
    classes_second: bool = False


def evidence_in(loss: Tensor, outputs: Iterable[Tensor]) -> LossEvidence | None:
    """Read in a loss's graph how it compares a model's outputs with their targets.

    Only the operations between the two are looked at: cross-entropies, squared and absolute
    differences and torch's losses of these names; nothing is computed.

    Args:
        loss: A loss that has not been run backward.
        outputs: What may be the model's outputs among what it was computed from.

    Returns:
        None where operations of none or of several kinds lie between, or others that are not known.

    Example:
        >>> import torch
        >>> outputs = torch.zeros(4, 3, requires_grad=True) + 0
        >>> evidence_in(torch.nn.functional.mse_loss(outputs, torch.zeros(4, 3)), [outputs]).kind
        'values'
    """
    ends = {step for one in outputs for step in _up_to_reshaping(one.grad_fn)}
    steps = _between(loss.grad_fn, ends)
    names = [step.name() for step in steps]

    def some(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    kinds = {
        "classes": some("NllLoss", "LogSoftmax"),
        "binary": some("BinaryCrossEntropy", "LogSigmoid"),
        "values": some("MseLoss", "SmoothL1Loss", "HuberLoss") or any(map(_is_distance, steps)),
    }
    found = [kind for kind, is_there in kinds.items() if is_there]
    if len(found) != 1:
        return None
    makes_probabilities = some("Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid")
    takes_them = some("LogBackward", "BinaryCrossEntropyBackward")
    return LossEvidence(found[0], takes_them and not makes_probabilities, some("NllLoss2D"))


def _between(start: Any, ends: set[Any]) -> list[Any]:
    """Return the steps on paths from a loss down to one of the ends, over known operations only."""
    leads: dict[Any, bool] = dict.fromkeys(ends, True)
    stack = [start] if start is not None else []
    while stack:
        step = stack[-1]
        below = [one for one, _ in step.next_functions if one is not None]
        if step not in leads and step.name().startswith(_OF_LOSSES):
            waiting = [one for one in below if one not in leads]
            if waiting:
                stack += waiting
                continue
        leads.setdefault(step, step.name().startswith(_OF_LOSSES) and any(map(leads.get, below)))
        stack.pop()
    return [step for step, does in leads.items() if does and step not in ends]


def _is_distance(step: Any) -> bool:
    """Tell whether a step squares a difference, or takes its absolute value."""
    below = [one for one, _ in step.next_functions if one is not None]
    if not below or not all(one.name().startswith("Sub") for one in below):
        return False
    name = step.name()
    square = name.startswith("Pow") and getattr(step, "_saved_exponent", None) == 2
    product = name.startswith("Mul") and len(below) == 2 and below[0] is below[1]
    return square or product or name.startswith(("Abs", "LinalgVectorNorm"))


def _up_to_reshaping(step: Any) -> list[Any]:
    steps = []
    while step is not None:
        steps.append(step)
        step = step.next_functions[0][0] if step.name().startswith(RESHAPING) else None
    return steps


_OF_LOSSES = (
    *RESHAPING,
    "Abs",
    "Add",
    "BinaryCrossEntropy",
    "Clamp",
    "Cat",
    "Div",
    "Gather",
    "HuberLoss",
    "Index",
    "LinalgVectorNorm",
    "LogBackward",
    "LogSigmoid",
    "LogSoftmax",
    "MaskedFill",
    "MaskedSelect",
    "Mean",
    "MseLoss",
    "Mul",
    "Neg",
    "NllLoss",
    "Pow",
    "Rsub",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Stack",
    "Sub",
    "Sum",
    "Where",
)
