"""Inputs of which moments are taken, and what those come to."""

import torch

from recall_lightning.measuring.moments import LowRankMoments


def rows(seed, count=20, width=6, rank=6):
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(count, rank, generator=generator)
    return factors @ torch.randn(rank, width, generator=generator)


def of_low_rank(inputs, rank, parts=3):
    moments = LowRankMoments.empty(inputs.shape[1], rank)
    for part in inputs.chunk(parts):
        moments.update(part)
    return moments


def dense(moments):
    return moments.factor.T @ moments.factor + torch.diag(moments.rest)
