"""What linear maps are given, one input a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.bags import bags
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.patches import patches, spread, spread_patches


def given_to(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module that is a linear map is given, for :func:`rows_of`.

    That is its first input; of an embedding bag its bags, of a transposed convolution the images
    spread as its other inputs have it.
    """
    if isinstance(child, nn.EmbeddingBag):
        return bags(child, *args, **kwargs)
    if isinstance(child, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return spread(child, *args, **kwargs)
    return args[0] if args else next(iter(kwargs.values()), None)


def rows_of(
    linear_map: LinearMap, child: nn.Module, given: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the inputs one by one, (inputs, width), without those on padding.

    An embedding's are row numbers, or bags as a sparse tensor.
    """
    if given.is_sparse:
        return given
    if linear_map.kind == "convolution":
        assert isinstance(child, nn.Conv1d | nn.Conv2d)
        start, stop = linear_map.rows or (0, 1)
        rows = patches(child, given, start // (stop - start))
    elif linear_map.kind == "transposed convolution":
        assert isinstance(child, nn.ConvTranspose1d | nn.ConvTranspose2d)
        rows = spread_patches(child, given)
    else:
        one = linear_map.kind in ("embedding", "bag")
        tokens = given.shape if one else given.shape[:-1]
        chosen = mask is not None and tokens == mask.shape
        rows = given[mask] if chosen else given
        rows = rows.flatten() if one else rows.reshape(-1, given.shape[-1])
    if linear_map.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows
