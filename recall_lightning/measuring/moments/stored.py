"""Second moments as a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recall_lightning.checks import FormError
from recall_lightning.measuring.moments.base import Moments
from recall_lightning.measuring.moments.full import FullMoments
from recall_lightning.measuring.moments.low_rank import LowRankMoments
from recall_lightning.measuring.moments.row_counts import RowCounts


def moments_from(state: Mapping[str, Any]) -> Moments:
    """Build what ``state_dict`` returned.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If one has not the shape that the others have.

    Example:
        >>> moments_from(RowCounts.empty(3).state_dict()).counts
        tensor([0., 0., 0.])
    """
    if "matrix" in state:
        _check_shapes(state, matrix=(len(state["matrix"]),) * 2, count=())
        return FullMoments(state["matrix"], state["count"], _noise_of(state))
    if "counts" in state:
        _check_shapes(state, counts=(state["counts"].numel(),), count=())
        return RowCounts(state["counts"], state["count"])
    factor, width = state["factor"], state["diagonal"].numel()
    _check_shapes(state, factor=(len(factor), width), diagonal=(width,), count=(), rank=())
    rank = int(state["rank"])
    return LowRankMoments(factor, state["diagonal"], state["count"], rank, _noise_of(state))


def _noise_of(state: Mapping[str, Tensor]) -> Tensor | None:
    if "noise" not in state:
        return None
    _check_shapes(state, noise=())
    return state["noise"]


def _check_shapes(state: Mapping[str, Tensor], **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise FormError(f"has {name} of shape {tuple(state[name].shape)}, not {shape}")
