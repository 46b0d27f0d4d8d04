"""Orders of training samples that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, RandomSampler, Subset


def mix_seed(seed: int, index: int) -> int:
    """A seed for each pair of seed and epoch or task, in the 32 bits that a CPU generator reads."""
    # Not seed + index: epoch 1 of seed 0 would have the order of epoch 0 of seed 1.
    return (seed * 1_000_003 + index) % 2**32


class SeededSampler(RandomSampler):
    """A random order that is the same at every ``iter()``.

    It is a ``RandomSampler`` so that Lightning knows it may replace it by a ``DistributedSampler``.
    Its seed is its own, because Lightning calls ``iter()`` on a new loader twice, and a generator
    would have moved on by the second time.

    Example::

        >>> sampler = SeededSampler(range(4), seed=0)
        >>> list(sampler) == list(sampler), sorted(sampler)
        (True, [0, 1, 2, 3])

    Args:
        data_source: What is sampled from.
        seed: Decides the order.
    """

    def __init__(self, data_source: Sized, seed: int) -> None:
        super().__init__(data_source)
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        """All indices of ``data_source`` in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(len(self.data_source), generator=generator).tolist())


class ReplaySampler(SeededSampler):
    """The order of :class:`SeededSampler` with stored samples after every batch of it.

    What it yields are indices into new samples followed by stored ones. A loader whose batch size
    is ``batch_size + num_replayed`` makes of them batches of ``batch_size`` new samples and
    ``num_replayed`` stored ones, of which no batch holds one twice; only the last batch may have
    fewer new ones.

    Example::

        >>> order = list(ReplaySampler(range(4), range(10), batch_size=2, num_replayed=1, seed=0))
        >>> [index >= 4 for index in order]
        [False, False, True, False, False, True]

    Args:
        data_source: The new samples.
        stored: The stored samples.
        batch_size: New samples in a batch.
        num_replayed: Stored samples in a batch, at most as many as there are.
        seed: Decides the order of the new samples and the choice of the stored ones.
    """

    def __init__(
        self, data_source: Sized, stored: Sized, batch_size: int, num_replayed: int, seed: int
    ) -> None:
        super().__init__(data_source, seed)
        self.stored = stored
        self.batch_size = batch_size
        self.num_replayed = num_replayed

    def __iter__(self) -> Iterator[int]:
        """Indices into the new samples and, from their number on, into the stored ones."""
        order = list(super().__iter__())
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1))
        for first in range(0, len(order), self.batch_size):
            yield from order[first : first + self.batch_size]
            drawn = torch.randperm(len(self.stored), generator=generator)[: self.num_replayed]
            yield from (drawn + len(order)).tolist()

    def __len__(self) -> int:
        """New and replayed samples of all batches."""
        new = len(self.data_source)
        return new + -(-new // self.batch_size) * self.num_replayed


def draw_jointly(datasets: list[Dataset[Any]], count: int, seed: int) -> Subset[Any]:
    """Draw samples from several datasets as if they were one, without replacement.

    Args:
        datasets: Map-style datasets.
        count: How many samples, at most as many as there are in all.
        seed: Decides which.

    Example::

        >>> drawn = draw_jointly([[0, 1, 2], [10, 11]], count=5, seed=0)
        >>> sorted(drawn)
        [0, 1, 2, 10, 11]
    """
    together: ConcatDataset[Any] = ConcatDataset(datasets)
    generator = torch.Generator().manual_seed(seed)
    return Subset(together, torch.randperm(len(together), generator=generator)[:count].tolist())
