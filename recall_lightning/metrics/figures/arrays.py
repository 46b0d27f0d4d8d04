"""What figures are given, as NumPy arrays with checked shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def array(values: Tensor | Sequence[Any], name: str, ndim: int) -> Any:
    """A float64 NumPy array of the values, with a checked number of dimensions and no empty one."""
    tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if tensor.ndim != ndim or not tensor.numel():
        raise ValueError(
            f"`{name}` has shape {tuple(tensor.shape)}: pass {ndim} dimension(s), none empty."
        )
    return tensor.numpy()


def check_names(name: str, names: Sequence[str], values: Any, axis: int) -> None:
    """Check that there is a name for each row (``axis`` 0) or column of the values."""
    if len(names) != values.shape[axis]:
        raise ValueError(
            f"`{name}` has {len(names)} entries for {values.shape[axis]} "
            f"{('rows', 'columns')[axis]}: pass one for each."
        )


def finite(values: Any) -> list[float]:
    """The finite values; 0 where there are none."""
    return [value for value in values.flat if math.isfinite(value)] or [0.0]
