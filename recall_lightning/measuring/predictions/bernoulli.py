"""Yes or no: each output is the logit of a probability of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.predictions.base import Predictions
from recall_lightning.measuring.predictions.targets import (
    are_fractions,
    are_probabilities,
    are_zeros_and_ones,
    have_shape_of,
)


class Bernoulli(Predictions):
    """Logits of independent units, (…, units): multi-label and binary classification.

    Told by targets that hold only 0 and 1, of any dtype, in the shape of the outputs or in theirs
    without a last axis of 1; unless a sigmoid or softmax has made probabilities of the outputs.
    One-hot targets of a softmax, and real numbers that happen to be 0 and 1, look just the same:
    where the training loss does not tell, set the kind by its name.

    Example:
        >>> Bernoulli().sampled_loss(torch.zeros(2, 3))  # 3 ln 2
        tensor([2.0794, 2.0794])
    """

    name = "binary"

    def sampled_loss(self, outputs: Tensor) -> Tensor:
        """Draw 0 or 1 a unit."""
        logits = outputs.float()
        probabilities = logits.detach().sigmoid()
        drawn = torch.bernoulli(torch.where(probabilities.isfinite(), probabilities, 0.5))
        each = functional.binary_cross_entropy_with_logits(logits, drawn, reduction="none")
        return each.sum(-1)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """T² · Σ p ln p/q + (1 − p) ln (1 − p)/(1 − q) over units, p the teacher's."""
        new, old = student.float() / temperature, teacher.detach().float() / temperature
        yes = old.sigmoid() * (functional.logsigmoid(old) - functional.logsigmoid(new))
        no = (-old).sigmoid() * (functional.logsigmoid(-old) - functional.logsigmoid(-new))
        return temperature**2 * (yes + no).sum(-1)

    def logits_of(self, probabilities: Tensor) -> Tensor:
        """Return ln p / (1 − p)."""
        return torch.logit(probabilities.float(), eps=1e-6)

    def told_by(self, outputs: Tensor, targets: Sequence[Tensor]) -> bool:
        """Tell whether all targets of the outputs' shape hold 0 and 1, and outputs are logits."""
        own = [target for target in targets if have_shape_of(outputs, target)]
        real = any(t.is_floating_point() and not are_zeros_and_ones(t) for t in own)
        return not real and any(map(are_zeros_and_ones, own)) and not are_probabilities(outputs)

    def fits(self, outputs: Tensor, target: Tensor) -> bool:
        """Tell whether a tensor has a 0, a 1 or a probability for every output."""
        return have_shape_of(outputs, target) and are_fractions(target)
