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
    return _sparse(owner, rows.long(), shares, (count, child.num_embeddings))


def sequences(
    child: nn.Embedding, ids: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what sequences hold of each row of a table, and their lookups one by one.

    What a sample's prediction has to do with a row is a sum over the row's lookups. Where the
    prediction reads all of a sequence alike that is the row's share of it, where each token counts
    for itself the number of lookups: what both say is returned, to be averaged.

    Args:
        child: The module; its padding is in no sequence.
        ids: Rows looked up, (…, tokens).
        mask: Which of them are no padding, in their shape.

    Returns:
        x of each sequence, sparse (sequences, rows) float32, with shares times the root of its
        length; and the sum over sequences of the shares, (rows,).

    Example:
        >>> x, shares = sequences(nn.Embedding(3, 2), torch.tensor([[0, 1, 1, 1]]))
        >>> x.to_dense(), shares
        (tensor([[0.5000, 1.5000, 0.0000]]), tensor([0.2500, 0.7500, 0.0000]))
    """
    counted = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    if child.padding_idx is not None:
        counted = counted & (ids != child.padding_idx)
    count = ids[..., 0].numel()
    owner = torch.arange(count, device=ids.device).view(*ids.shape[:-1], 1).expand_as(ids)
    rows, owner = ids[counted].long(), owner[counted]
    lengths = torch.bincount(owner, minlength=count).float()[owner]
    shares = lengths.new_zeros(child.num_embeddings)  # whatever torch's default is
    shares.index_add_(0, rows, 1 / lengths)
    return _sparse(owner, rows, lengths.rsqrt(), (count, child.num_embeddings)), shares


def _sparse(owner: Tensor, rows: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    # torch warns where nobody says whether indices are to be checked
    made = torch.sparse_coo_tensor(torch.stack([owner, rows]), values, size, check_invariants=False)
    return made.coalesce()


def dense_parts(sparse: Tensor, size: int = 256) -> Iterator[Tensor]:
    """Return the rows of a sparse matrix as dense ones, a few at a time.

    Example:
        >>> [part.tolist() for part in dense_parts(torch.eye(3).to_sparse(), 2)]
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]
    """
    for rows in torch.arange(len(sparse), device=sparse.device).split(size):
        yield sparse.index_select(0, rows).to_dense()
