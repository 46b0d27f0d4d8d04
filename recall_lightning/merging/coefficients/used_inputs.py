"""The coefficient of a linear map of which a task has used some inputs alone."""

from __future__ import annotations

from torch import Tensor

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient


class UsedInputsCoefficient(MapCoefficient):
    """A map's coefficient over the inputs that the current task has used, and numbers for others.

    What a merge changes of an input then depends on inputs that were used, alone: where an unused
    one's weights equal the snapshot's, they stay as they are, bit for bit.

    Args:
        linear_map: The map.
        used: Which of its inputs were used, bool (width).
        own: The coefficient over those, of a matrix of their columns; or a number.
        others: What all others take of the snapshot, in [0, 1], (width); those of used ones don't
            count.

    Example:
        >>> import torch
        >>> one = LinearMap("w", None, "bag", ("",), 3)
        >>> used = torch.tensor([True, False, True])
        >>> taken = UsedInputsCoefficient(one, used, 0.5, torch.ones(3))
        >>> taken.pull(torch.tensor([[1.0, 0.0, 2.0]]))
        tensor([[0.5000, 0.0000, 1.0000]])
    """

    def __init__(
        self, linear_map: LinearMap, used: Tensor, own: MapCoefficient | float, others: Tensor
    ) -> None:
        self.used, self.own, self.others = used, own, others
        mean = own.mean if isinstance(own, MapCoefficient) else own
        self.takes_all_rows = isinstance(own, MapCoefficient) and own.takes_all_rows
        total = mean * float(used.sum()) + float(others[~used].double().sum())
        condition = own.condition if isinstance(own, MapCoefficient) else 1.0
        super().__init__(linear_map, total / max(1, len(used)), condition)

    @property
    def gain(self) -> float:
        """The larger one of both, as they have no column in common."""
        own = self.own.gain if isinstance(self.own, MapCoefficient) else abs(self.own)
        return max(own, float(self.others.max()))

    def pull(self, difference: Tensor, first_row: int = 0) -> Tensor:
        """Return what each column takes."""
        pulled = difference * self.others
        own = difference[:, self.used]
        if isinstance(self.own, MapCoefficient):
            pulled[:, self.used] = self.own.pull(own, first_row)
        else:
            pulled[:, self.used] = self.own * own
        return pulled

    def fits(self, matrix: Tensor) -> bool:
        """Tell whether the matrix has these inputs, and what was solved fits those used."""
        if matrix.shape[1] != len(self.used):
            return False
        columns = matrix.new_empty(len(matrix), int(self.used.sum()))
        return not isinstance(self.own, MapCoefficient) or self.own.fits(columns)

    def scaled(self, strength: float) -> UsedInputsCoefficient:
        """Return the coefficient times ``strength``."""
        own = self.own
        own = own.scaled(strength) if isinstance(own, MapCoefficient) else own * strength
        return UsedInputsCoefficient(self.linear_map, self.used, own, self.others * strength)
