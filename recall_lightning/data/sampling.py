"""Orders of training samples that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, DistributedSampler, Subset


def mix_seed(seed: int, index: int) -> int:
    """A seed for each pair of seed and epoch or task, in the 32 bits that a CPU generator reads."""
    # Not seed + index: epoch 1 of seed 0 would have the order of epoch 0 of seed 1.
    return (seed * 1_000_003 + index) % 2**32


class SeededSampler(DistributedSampler[int]):
    """A random order that is the same at every ``iter()``, dealt out to the processes.

    It is a ``DistributedSampler``, in whose place Lightning puts no other. Its seed is its own,
    neither the epoch nor a generator changes it: Lightning calls ``iter()`` on a new loader twice.

    Example::

        >>> sampler = SeededSampler(range(4), seed=0)
        >>> list(sampler) == list(sampler), sorted(sampler)
        (True, [0, 1, 2, 3])

    Args:
        dataset: What is sampled from.
        seed: Decides the order.
        num_replicas: The number of processes. Where it does not divide the samples, some come
            twice, as many times as are missing.
        rank: Which of them this is.

    Attributes:
        skipped: How many of its indices are left out at the front; the length is what it would be
            without.
    """

    def __init__(self, dataset: Sized, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Change nothing: the seed is that of an epoch already."""

    def __iter__(self) -> Iterator[int]:
        """This process's indices in random order."""
        return islice(self.order(), self.skipped, None)

    def order(self) -> Iterator[int]:
        """All that this process samples, whatever is skipped."""
        return super().__iter__()

    def sampled(self) -> Tensor:
        """The indices of this process's own part of the dataset, (samples,) int64, in no order."""
        return torch.tensor(list(super().__iter__())).unique()


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
        dataset: The new samples.
        stored: The stored samples.
        batch_size: New samples in a batch.
        num_replayed: Stored samples in a batch, at most as many as there are.
        seed: Decides the order of the new samples and the choice of the stored ones.
    """

    def __init__(
        self, dataset: Sized, stored: Sized, batch_size: int, num_replayed: int, seed: int
    ) -> None:
        super().__init__(dataset, seed)
        self.stored = stored
        self.batch_size = batch_size
        self.num_replayed = num_replayed

    def order(self) -> Iterator[int]:
        """Indices into the new samples and, from their number on, into the stored ones."""
        order = list(super().order())
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1))
        for first in range(0, len(order), self.batch_size):
            yield from order[first : first + self.batch_size]
            drawn = torch.randperm(len(self.stored), generator=generator)[: self.num_replayed]
            yield from (drawn + len(order)).tolist()

    def __len__(self) -> int:
        """New and replayed samples of all batches."""
        new = super().__len__()
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
