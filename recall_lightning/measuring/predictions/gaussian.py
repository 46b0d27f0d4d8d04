"""Real numbers: each with a normal distribution of variance 1 around its output."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.measuring.predictions.base import Predictions
from recall_lightning.measuring.predictions.targets import (
    are_probabilities,
    are_zeros_and_ones,
    have_shape_of,
)


class Gaussian(Predictions):
    """Means of real numbers, (…, values): the predictions of a model trained on squared error.

    Told by floating-point targets in the shape of the outputs, or in theirs without a last axis of
    1. Those that hold only 0 and 1 tell it where the outputs are probabilities already, which a
    sigmoid or softmax puts out.

    Example:
        >>> Gaussian().divergence(torch.zeros(2, 3), torch.ones(2, 3))
        tensor([1.5000, 1.5000])
    """

    name = "values"

    def sampled_loss(self, outputs: Tensor) -> Tensor:
        """Draw a number a value."""
        noise = torch.randn_like(outputs, dtype=torch.float32)
        # (f − y)² / 2 at y = f − noise: the gradient is the noise, whatever f is rounded to
        moved = outputs.float() - outputs.detach().float()
        return (moved * noise + (noise.square() + math.log(2 * math.pi)) / 2).sum(-1)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """½ (f − g)² summed over values: T cancels out."""
        return (student.float() - teacher.detach().float()).square().sum(-1) / 2

    def told_by(self, outputs: Tensor, targets: Sequence[Tensor]) -> bool:
        """Tell whether one of the targets holds real numbers."""
        own = [target for target in targets if have_shape_of(outputs, target)]
        real = any(t.is_floating_point() and not are_zeros_and_ones(t) for t in own)
        return real or (any(map(are_zeros_and_ones, own)) and are_probabilities(outputs))

    def fits(self, outputs: Tensor, target: Tensor) -> bool:
        """Tell whether a tensor has a number for every output."""
        return have_shape_of(outputs, target)
