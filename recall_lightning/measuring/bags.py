"""What an embedding bag multiplies: how much of each row is in each bag."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def bags(
    child: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Return x of y = xE, the bags over the rows of a table E that they sum or average.

    Args:
        child: The module, of mode ``"sum"`` or ``"mean"``; its padding is in no bag.
        input: Rows looked up, (bags, rows in each) or those of all bags one after the other.
        offsets: Where the bags start, of the latter.
        per_sample_weights: Of each lookup, in the shape of ``input``.

    Returns:
        Sparse (bags, rows) float32, coalesced.

    Example:
        >>> table = nn.EmbeddingBag(4, 2, mode="mean", padding_idx=0)
        >>> bags(table, torch.tensor([[1, 1, 3, 0]])).to_dense().round(decimals=2)
        tensor([[0.0000, 0.6700, 0.0000, 0.3300]])
    """
    rows = input.flatten()
    if offsets is None:
        count = len(input)
        owner = torch.arange(count, device=rows.device).repeat_interleave(input.shape[1])
    else:
        starts = offsets[:-1] if child.include_last_offset else offsets
        count = len(starts)
        places = torch.arange(len(rows), device=rows.device)
        owner = torch.searchsorted(starts.contiguous(), places, right=True) - 1
    shares = torch.ones(len(rows), device=rows.device)
    if per_sample_weights is not None:
        shares = per_sample_weights.flatten().float()
    if child.padding_idx is not None:
        counted = rows != child.padding_idx
        rows, owner, shares = rows[counted], owner[counted], shares[counted]
    if child.mode == "mean":
        shares = shares / torch.bincount(owner, minlength=count)[owner]
    indices = torch.stack([owner, rows]).long()
    return torch.sparse_coo_tensor(indices, shares, (count, child.num_embeddings)).coalesce()


def dense_parts(sparse: Tensor, size: int = 256) -> Iterator[Tensor]:
    """Return the rows of a sparse matrix as dense ones, a few at a time.

    Example:
        >>> [part.tolist() for part in dense_parts(torch.eye(3).to_sparse(), 2)]
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
    """
    for rows in torch.arange(len(sparse), device=sparse.device).split(size):
        yield sparse.index_select(0, rows).to_dense()
