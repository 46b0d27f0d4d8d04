"""The base of all kinds of predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

KINDS: dict[str, type[Predictions]] = {}
"""The kinds that have a name, by it, in the order in which a batch is compared with them."""


class Predictions(ABC):
    """What a model's outputs say of its targets, as a distribution.

    Its last axis are the distribution's parameters; every position on the others is a prediction: a
    sample, or a token of it. A kind of your own defines the two abstract methods. With a ``name``
    of its own it can be set by that, too; it is then constructed without arguments.

    Example:
        >>> import torch
        >>> class Poisson(Predictions):  # outputs are logarithms of rates
        ...     def sampled_loss(self, outputs):
        ...         drawn = torch.poisson(outputs.detach().exp())
        ...         return (outputs.exp() - drawn * outputs).sum(-1)
        ...     def divergence(self, student, teacher, temperature=1.0):
        ...         gain = teacher.exp() * (teacher - student)
        ...         return (gain - teacher.exp() + student.exp()).sum(-1)
        >>> Poisson().divergence(torch.zeros(2, 1), torch.zeros(2, 1))
        tensor([0., 0.])
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register a kind that has a name of its own."""
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            return
        known = KINDS.get(cls.name, cls)
        ours = (cls.__module__, cls.__qualname__)
        if cls.name == "auto" or (known.__module__, known.__qualname__) != ours:
            raise ValueError(f"predictions cannot be called {cls.name!r}: that name is taken")
        KINDS[cls.name] = cls

    @abstractmethod
    def sampled_loss(self, outputs: Tensor) -> Tensor:
        """Return −log p of labels that are drawn from the predictions.

        The second moments of its gradients are the Fisher information, without a look at true
        labels (Martens, arXiv 1412.1193; Kunstner et al., arXiv 1905.12558).

        Args:
            outputs: (…, parameters), with a gradient.

        Returns:
            (…) float32, in nats; up to a constant.
        """

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return T² · KL(teacher ‖ student), both of outputs that are divided by T.

        T² keeps the gradient's size independent of T (Hinton et al., arXiv 1503.02531).

        Args:
            student: Outputs (…, parameters).
            teacher: Outputs of the same shape, which get no gradient.
            temperature: T.

        Returns:
            (…) float32, in nats.
        """

    def logits_of(self, probabilities: Tensor) -> Tensor:
        """Return the outputs that stand for probabilities, where a model puts out those itself."""
        return probabilities

    def told_by(self, outputs: Tensor, targets: Sequence[Tensor]) -> bool:
        """Tell whether a batch's targets show that outputs are of this kind: by default, never."""
        return False

    def fits(self, outputs: Tensor, target: Tensor) -> bool:
        """Tell whether a tensor may hold the targets of such outputs: by default, any may."""
        return True
