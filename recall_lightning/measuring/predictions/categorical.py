"""One class of several: a softmax over the outputs' last axis."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.predictions.base import Predictions
from recall_lightning.measuring.predictions.targets import (
    are_distributions,
    are_fractions,
    are_integers,
    are_zeros_and_ones,
    have_shape_of,
)

_ROWS = 1024  # whose probabilities are formed at a time: vocabularies are large


class Categorical(Predictions):
    """Logits of classes, (…, classes).

    Told by integers in the shape of the outputs' other axes (with a 1 behind them or without),
    below the number of classes, or −100 for none; unless there are floating-point targets in the
    shape of the outputs. Told as well by those if they are probabilities of classes, not all of
    them 0 or 1: none is below 0, and every prediction's sum is 1.

    Raises:
        ValueError: From both methods, for a last axis of 1.

    Example:
        >>> logits = torch.zeros(2, 3)
        >>> Categorical().sampled_loss(logits)  # ln 3
        tensor([1.0986, 1.0986])
        >>> Categorical().divergence(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]))  # ln 2
        tensor([0.6931])
    """

    name = "classes"

    def sampled_loss(self, outputs: Tensor) -> Tensor:
        """Draw a class a prediction."""
        _check_classes(outputs)
        logits = outputs.flatten(0, -2).float()
        drawn = torch.cat([_drawn(rows) for rows in logits.detach().split(_ROWS)])
        each = functional.cross_entropy(logits, drawn, reduction="none")
        return each.view(outputs.shape[:-1])

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """T² · Σ p (ln p − ln q) over classes, p the teacher's."""
        _check_classes(student)
        student_log = functional.log_softmax(student.float() / temperature, dim=-1)
        teacher_log = functional.log_softmax(teacher.detach().float() / temperature, dim=-1)
        each = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True)
        return temperature**2 * each.sum(-1)

    def logits_of(self, probabilities: Tensor) -> Tensor:
        """Return ln p."""
        return probabilities.float().clamp(min=1e-12).log()

    def told_by(self, outputs: Tensor, targets: Sequence[Tensor]) -> bool:
        """Tell whether targets hold classes, or what else is there for each are probabilities."""
        own = [target for target in targets if have_shape_of(outputs, target)]
        if any(target.is_floating_point() for target in own):
            hard = all(map(are_zeros_and_ones, own))
            return not hard and all(map(are_distributions, own))
        return any(_are_classes(target, outputs) for target in targets)

    def fits(self, outputs: Tensor, target: Tensor) -> bool:
        """Tell whether a tensor may hold classes, or their probabilities.

        Classes are not compared with their number, as that would wait for the device.
        """
        if outputs.shape[-1] == 1:
            return False
        if target.shape == outputs.shape:
            return are_fractions(target)
        return _have_shape_of_classes(target, outputs)


def _check_classes(outputs: Tensor) -> None:
    if outputs.shape[-1] == 1:
        raise ValueError(
            f"predictions='classes' is a softmax over the last axis, and outputs of shape "
            f"{tuple(outputs.shape)} have one class only: use 'binary' or 'values'"
        )


def _drawn(logits: Tensor) -> Tensor:
    """Draw a class for every row; of logits that are not finite any, the loss tells."""
    probabilities = logits.softmax(dim=-1)
    usable = probabilities.isfinite().all(dim=-1, keepdim=True)
    return torch.multinomial(torch.where(usable, probabilities, 1.0), 1).squeeze(-1)


def _are_classes(target: Tensor, outputs: Tensor) -> bool:
    if not _have_shape_of_classes(target, outputs) or outputs.shape[-1] == 1:
        return False
    return bool(((target >= 0) & (target < outputs.shape[-1]) | (target == -100)).all())


def _have_shape_of_classes(target: Tensor, outputs: Tensor) -> bool:
    shapes = (outputs.shape[:-1], (*outputs.shape[:-1], 1))
    return are_integers(target) and target.shape in shapes
