"""Predictions of any distribution that torch has, or that has its interface."""

from collections.abc import Callable

from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from recall_lightning.measuring.predictions.base import Predictions


class OfDistribution(Predictions):
    """What a function makes of outputs: the distribution of their targets.

    Args:
        of_outputs: From outputs (…, parameters) to a distribution whose batch and event axes
            together begin with the outputs' axes but the last.

    Raises:
        ValueError: From both methods, if it returns something else.

    Example:
        >>> import torch
        >>> counts = OfDistribution(lambda outputs: torch.distributions.Poisson(outputs.exp()))
        >>> counts.divergence(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor([0., 0.])
    """

    def __init__(self, of_outputs: Callable[[Tensor], Distribution]) -> None:
        self.of_outputs = of_outputs

    def sampled_loss(self, outputs: Tensor) -> Tensor:
        """Draw targets from the distribution."""
        distribution = self._distribution(outputs.float())
        return _summed(-distribution.log_prob(distribution.sample().detach()), outputs)

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """T² · KL of the distributions that outputs divided by T have."""
        old = self._distribution(teacher.detach().float() / temperature)
        new = self._distribution(student.float() / temperature)
        try:
            between = kl_divergence(old, new)
        except NotImplementedError as error:
            raise ValueError(
                f"torch knows no divergence between {old} and {new}: use another kind of "
                "distribution, or torch.distributions.register_kl"
            ) from error
        return temperature**2 * _summed(between, student)

    def _distribution(self, outputs: Tensor) -> Distribution:
        found = self.of_outputs(outputs)
        if not isinstance(found, Distribution):
            raise ValueError(
                f"predictions={self.of_outputs!r} returned {type(found).__name__} for outputs of "
                f"shape {tuple(outputs.shape)}: a torch.distributions.Distribution is wanted"
            )
        return found


def _summed(each: Tensor, outputs: Tensor) -> Tensor:
    """Sum what a distribution keeps apart to one number a prediction."""
    wanted = outputs.shape[:-1]
    if each.shape[: len(wanted)] != wanted:
        raise ValueError(
            f"the distribution's log_prob has the shape {tuple(each.shape)}, and outputs of shape "
            f"{tuple(outputs.shape)} are {tuple(wanted)} predictions: it must begin with those axes"
        )
    return each.flatten(len(wanted)).sum(-1) if each.dim() > len(wanted) else each
