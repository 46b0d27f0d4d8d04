"""Which kind of predictions a model makes: as it is set, or as its batches tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recall_lightning.measuring.predictions.base import KINDS, Predictions


class FoundPredictions:
    """The kind of a model's predictions, found in the first batch that tells it.

    Outputs of more than three axes, and targets that fit no kind, tell none. The kind stays the
    same as long as it fits the targets.

    Args:
        setting: ``"auto"``; the name of a kind, ``"classes"``, ``"values"`` or ``"binary"``; or a
            :class:`Predictions`.

    Attributes:
        kind: What was set or found; None before a batch has told.

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

    def __init__(self, setting: str | Predictions = "auto") -> None:
        self._is_set = setting != "auto"
        self.kind: Predictions | None = None
        if isinstance(setting, Predictions):
            self.kind = setting
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

    def of(self, outputs: Tensor, targets: Sequence[Tensor]) -> Predictions | None:
        """Return the kind of a batch's outputs; None where that is neither set nor told.

        Args:
            outputs: (…, parameters), a prediction a position.
            targets: What may be the targets among the batch's tensors.
        """
        if self.kind is not None and any(self.kind.fits(outputs, target) for target in targets):
            return self.kind
        told = _told_by(outputs, targets)
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


def _told_by(outputs: Tensor, targets: Sequence[Tensor]) -> Predictions | None:
    if outputs.dim() > 3:
        return None
    kinds = (kind() for kind in KINDS.values())
    return next((kind for kind in kinds if kind.told_by(outputs, targets)), None)


def _named(kind: Predictions) -> str:
    return repr(kind.name or type(kind).__name__)
