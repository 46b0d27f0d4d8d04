"""Which kind of predictions a model makes: as it is set, or as its loss or its batches tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from torch import Tensor
from torch.distributions import Distribution

from recall_lightning.measuring.predictions.base import KINDS, Predictions
from recall_lightning.measuring.predictions.bernoulli import Bernoulli
from recall_lightning.measuring.predictions.categorical import Categorical
from recall_lightning.measuring.predictions.distribution import OfDistribution
from recall_lightning.measuring.predictions.gaussian import Gaussian
from recall_lightning.measuring.predictions.loss import LossEvidence
from recall_lightning.measuring.predictions.targets import (
    are_distributions,
    are_integers,
    are_probabilities,
)


class FoundPredictions:
    """The kind of a model's predictions: what is set, what the training loss tells, or a batch.

    Where neither is set nor told by a loss (see :meth:`see_loss`), the first batch tells it whose
    targets fit a kind, which then stays the same as long as it fits them. Classes are the outputs'
    last axis, or the second where targets (N, …) fit outputs (N, classes, …) in no other way;
    images that fit in both ways tell none.

    Args:
        setting: ``"auto"``; the name of a kind, ``"classes"``, ``"values"`` or ``"binary"``; a
            :class:`Predictions`; or a function from outputs to a ``torch.distributions``
            distribution of targets.

    Attributes:
        kind: What was set or found; None before anything has told.
        is_shown: Whether the training loss has told it.
        doubt: What the kind that a batch has told may be instead: ``"values"`` where outputs have
            the shape of inputs, as a reconstruction has, ``"classes"`` where targets are one-hot;
            None where nothing is in doubt.

    Raises:
        ValueError: For a name that no kind has; from :meth:`of`, where targets contradict what was
            set.

    Example:
        >>> import torch
        >>> found = FoundPredictions()
        >>> found.of(torch.zeros(4, 3), [torch.tensor([0, 1, 2, -100])]).name
        'classes'
        >>> found.of(torch.zeros(4, 3), [torch.eye(4, 3)]).name  # fits: they may be probabilities
        'classes'
        >>> FoundPredictions().of(torch.zeros(4, 3), [torch.eye(4, 3)]).name
        'binary'
    """

    def __init__(
        self, setting: str | Predictions | Callable[[Tensor], Distribution] = "auto"
    ) -> None:
        self._is_set = setting != "auto"
        self.kind: Predictions | None = None
        self.is_shown = False
        self.doubt: str | None = None
        self._evidence: LossEvidence | None = None
        self._of_own_outputs = False
        if isinstance(setting, Predictions):
            self.kind = setting
        elif isinstance(setting, type) and issubclass(setting, Predictions):
            self.kind = setting()
        elif callable(setting):
            self.kind = OfDistribution(cast("Callable[[Tensor], Distribution]", setting))
        elif self._is_set:
            if setting not in KINDS:
                names = ", ".join(map(repr, ("auto", *KINDS)))
                raise ValueError(
                    f"predictions={setting!r} is no kind of prediction: use one of {names}, or an "
                    "object of your own kind"
                )
            self.kind = KINDS[setting]()

    @property
    def found(self) -> str | None:
        """The name of the kind that batches have told; None where it is set, or not told yet."""
        return None if self._is_set or self.kind is None else self.kind.name

    def restore(self, found: str | None) -> None:
        """Go on with what :attr:`found` was, as batches may tell less than those before them."""
        if not self._is_set:
            self.kind = KINDS[found]() if found in KINDS else None

    def see_loss(self, evidence: LossEvidence | None, of_own_outputs: bool = True) -> str | None:
        """Take what the training loss tells, which goes before what targets tell.

        Args:
            evidence: What it tells; None takes back what an earlier one told.
            of_own_outputs: Whether the outputs that it compares are those that :meth:`of` is given,
                not what these are made of.

        Returns:
            The kind that the loss tells where another is set, which stays.
        """
        self._evidence, self._of_own_outputs = evidence, of_own_outputs
        self.is_shown = evidence is not None and not self._is_set
        if evidence is None:
            return None
        if self.is_shown:
            self.kind, self.doubt = KINDS[evidence.kind](), None
        known = isinstance(self.kind, Categorical | Bernoulli | Gaussian)
        assert self.kind is not None
        return evidence.kind if known and self.kind.name != evidence.kind else None

    def to_parameters(
        self, outputs: Tensor, targets: Sequence[Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """Return what makes the parameters of :attr:`kind` of outputs like these.

        Classes come last, and probabilities become logits.

        Args:
            outputs: What the model has put out, with its graph.
            targets: What may be the targets.

        Example:
            >>> import torch
            >>> found, halves = FoundPredictions("classes"), torch.full((4, 2, 3), 0.5)
            >>> found.to_parameters(halves, [torch.ones(4, 3, dtype=torch.long)])(halves).shape
            torch.Size([4, 3, 2])
        """
        kind = self.kind
        second = isinstance(kind, Categorical) and self._classes_are_second(outputs, targets)
        placed = outputs.movedim(1, -1) if second else outputs
        convert = self._takes_probabilities(placed)
        return partial(_parameters, kind=kind, second=second, convert=convert)

    def of(
        self, outputs: Tensor, targets: Sequence[Tensor], inputs: Sequence[Tensor] = ()
    ) -> Predictions | None:
        """Return the kind of a batch's outputs; None where that is neither set nor told.

        Args:
            outputs: (…, parameters), a prediction a position; or (N, classes, …).
            targets: What may be the targets among the batch's tensors.
            inputs: What the model may reconstruct.
        """
        if self.is_shown:
            return self.kind
        if self._classes_are_second(outputs, targets):
            outputs = outputs.movedim(1, -1)
        alike = [one for one in inputs if one.is_floating_point() and one.shape == outputs.shape]
        of_kind = [*targets, *(alike if self._is_set else [])]
        if self.kind is not None and any(self.kind.fits(outputs, target) for target in of_kind):
            return self.kind
        told = _told_by(outputs, targets)
        self.doubt = None
        if isinstance(told, Categorical) and alike:
            self.doubt = "values"
        elif isinstance(told, Bernoulli) and any(map(are_distributions, targets)):
            self.doubt = "classes"
        if not self._is_set:
            self.kind = told or self.kind
            return told
        assert self.kind is not None
        if told is not None and type(told) is not type(self.kind):
            raise ValueError(
                f"the model's predictions are set to {_named(self.kind)}, and a batch's outputs of "
                f"shape {tuple(outputs.shape)} have targets of shape "
                f"{' and '.join(str(tuple(target.shape)) for target in targets)} that mean "
                f"{_named(told)}: set predictions={told.name!r}, or mend the batch"
            )
        return self.kind

    def _takes_probabilities(self, outputs: Tensor) -> bool:
        """Tell whether outputs in their place are probabilities that the kind wants as logits."""
        told, kind = self._evidence, self.kind
        if (
            told is not None
            and self._of_own_outputs
            and kind is not None
            and kind.name == told.kind
        ):
            return told.of_probabilities
        if isinstance(self.kind, Categorical):
            return are_distributions(outputs)
        return isinstance(self.kind, Bernoulli) and are_probabilities(outputs)

    def _classes_are_second(self, outputs: Tensor, targets: Sequence[Tensor]) -> bool:
        if outputs.dim() < 3:
            return False
        if self._evidence is not None and self._evidence.classes_second:
            return True
        shapes = [target.shape for target in targets if are_integers(target)]
        return outputs[:, 0].shape in shapes and outputs.shape[:-1] not in shapes


def _parameters(outputs: Tensor, kind: Predictions | None, second: bool, convert: bool) -> Tensor:
    outputs = outputs.movedim(1, -1) if second else outputs
    return kind.logits_of(outputs) if kind is not None and convert else outputs


def _told_by(outputs: Tensor, targets: Sequence[Tensor]) -> Predictions | None:
    if outputs.dim() > 3:  # images: classes may be the second axis, which was moved if it is clear
        square = outputs.shape[:-1] == outputs[:, 0].shape
        targets = [t for t in targets if not (square and t.shape == outputs.shape[:-1])]
    kinds = (kind() for kind in KINDS.values())
    return next((kind for kind in kinds if kind.told_by(outputs, targets)), None)


def _named(kind: Predictions) -> str:
    return repr(kind.name or type(kind).__name__)
