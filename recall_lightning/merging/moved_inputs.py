"""Where inputs of a layer have come to lie, as the layers before it have changed."""

from __future__ import annotations

import torch
from torch import Tensor

KNOWN_INPUTS = 256
"""How many inputs are read of those whose old and new places are known."""

_RIDGE = 10.0  # of the mean square of an entry, summed over the known inputs
_LEAST = 1e-12  # where all of them are 0
_FOLDS = 8


class MovedInputs:
    """Tells how far inputs move from how far others do, which are of other classes.

    A linear map, from where an input lay to how far it has moved, is fitted to the others by ridge
    regression (learnable drift compensation, Gomez-Villa et al., arXiv 2407.08536, drawn towards no
    movement at all as there are fewer inputs than entries). What moves all inputs alike is mostly
    along their mean, so there is no intercept.

    How much of that is common to inputs of other classes is told by the others: those of some
    classes are left out, and it is seen how much of their way the rest foretells. Others of one
    class alone tell nothing.

    Args:
        inputs: Those of which only the old place is known, (inputs, width) float32.
        before: The old places of the others, (others, width) float32; 256 of them are read.
        classes: The class of each other, (others) int64.
        most: How much is followed at most of what is common.

    Example:
        >>> others, classes = torch.ones(4, 90), torch.tensor([0, 0, 1, 1])
        >>> MovedInputs(torch.ones(1, 90), others, classes).by(2 * others)[0, 0]
        tensor(1.9000)
        >>> MovedInputs(torch.ones(1, 90), others, classes * 0).by(2 * others)[0, 0]
        tensor(1.)
    """

    def __init__(self, inputs: Tensor, before: Tensor, classes: Tensor, most: float = 1.0) -> None:
        step = max(-(-len(before) // KNOWN_INPUTS), 1)
        self._rows = torch.arange(0, len(before), step, device=before.device)
        self._inputs, self._before, self._most = inputs, before[self._rows], most
        known = self._before.double()
        squares = known @ known.T
        ridge = _RIDGE * squares.trace() / known.shape[1] + _LEAST
        self._shares = _shares(squares, ridge, inputs.double() @ known.T)
        _, folds = classes[self._rows].unique(return_inverse=True)
        folds = folds % _FOLDS
        self._left_out = torch.zeros_like(squares, dtype=torch.float32)
        for fold in folds.unique():
            own, rest = (folds == fold).nonzero()[:, 0], (folds != fold).nonzero()[:, 0]
            found = _shares(squares[rest][:, rest], ridge, squares[own][:, rest])
            self._left_out[own[:, None], rest] = found

    def by(self, after: Tensor) -> Tensor:
        """Return where the inputs lie, given where the others do now; both are (…, width)."""
        moved = after[self._rows] - self._before
        foretold = self._left_out @ moved
        common = (foretold * moved).sum() / foretold.square().sum().clamp(min=_LEAST)
        return self._inputs + self._most * common.clamp(0, 1) * (self._shares @ moved)


def _shares(squares: Tensor, ridge: Tensor, given: Tensor) -> Tensor:
    """Return what each of the others has in what is foretold of an input."""
    ridged = squares + ridge * torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    return torch.linalg.solve(ridged, given, left=False).float()
