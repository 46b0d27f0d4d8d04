"""How much of the snapshot a weight takes: a number, or a matrix of a linear map."""

from torch import Tensor

from recall_lightning.merging.coefficients.linear_maps import MapCoefficient

Coefficient = float | Tensor | MapCoefficient
"""The snapshot's weight: one for a block or a weight, one an element, or a linear map's matrix."""

__all__ = ["Coefficient", "MapCoefficient"]
