"""Candidates for typical samples, drawn from a training dataloader without disturbing it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from recall_lightning.measuring.isolation import isolated_rng


def draw_candidates(loader: object, count: int, seed: int) -> list[Any] | None:
    """Draw random training samples from the dataset behind a dataloader, collated by it.

    Neither the dataloader's sampler nor any global random state moves, so the order in which
    training sees its data stays what it was; only a dataset with a random generator of its own
    notices that samples were read.

    Args:
        loader: What the Trainer trains on.
        count: How many samples; fewer come back if the training set is smaller.
        seed: Decides which.

    Returns:
        Batches of at most the dataloader's batch size; or None where the training samples can't be
        read apart from training: an ``IterableDataset``, a custom sampler, several dataloaders.

    Example:
        >>> data = torch.arange(100)
        >>> batches = draw_candidates(DataLoader(data, batch_size=4), count=6, seed=0)
        >>> [len(batch) for batch in batches]
        [4, 2]
    """
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return None
    indices = _training_indices(loader)
    if indices is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = indices[torch.randperm(len(indices), generator=generator)[:count]]
    apart = DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=chosen.tolist(),
        collate_fn=loader.collate_fn,
        generator=generator,
    )
    with isolated_rng():  # a dataset that augments at random reads the global state
        return list(apart)


def training_samples(loader: object) -> int | None:
    """Return how many samples a process trains on, or None where that can't be known."""
    indices = _training_indices(loader) if isinstance(loader, DataLoader) else None
    return None if indices is None else len(indices)


def _training_indices(loader: "DataLoader[Any]") -> Tensor | None:
    if isinstance(loader.dataset, IterableDataset):
        return None
    sampler = loader.sampler
    if hasattr(sampler, "sampled"):  # it tells
        return sampler.sampled()
    if isinstance(sampler, DistributedSampler):
        if sampler.dataset is not loader.dataset:  # it distributes a custom sampler's choice
            return None
        everything = torch.arange(len(sampler.dataset))  # type: ignore[arg-type]
        return everything[sampler.rank :: sampler.num_replicas]
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(sampler.indices)
    if isinstance(sampler, (RandomSampler, SequentialSampler)):
        return torch.arange(len(sampler.data_source))
    return None
