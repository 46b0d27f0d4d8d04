import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from recall_lightning.measuring.candidates import draw_candidates, training_samples


class Augmented(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return index + 0 * (torch.rand(()) + np.random.rand() + random.random())


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("a stream must not be read apart from training")


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_candidates_are_distinct_samples_in_batches_of_the_loaders_size():
    batches = draw_candidates(DataLoader(torch.arange(50), batch_size=8), 20, seed=0)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert len(set(torch.cat(batches).tolist())) == 20


def test_drawing_leaves_the_loaders_order_and_every_random_state():
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Augmented(), batch_size=5, shuffle=True, generator=generator)
    generator_before, before = generator.get_state(), states()
    draw_candidates(loader, 20, seed=0)
    assert torch.equal(generator.get_state(), generator_before)
    assert states() == before


def test_the_loaders_collate_function_makes_the_batches():
    loader = DataLoader(
        range(50), batch_size=8, collate_fn=lambda items: {"x": torch.tensor(items)}
    )
    assert set(draw_candidates(loader, 8, seed=0)[0]) == {"x"}


def test_only_what_is_trained_on_is_drawn():
    data = torch.arange(50)
    subset = DataLoader(data, sampler=SubsetRandomSampler(range(10)), batch_size=4)
    rank = DistributedSampler(data, num_replicas=2, rank=1)
    assert set(torch.cat(draw_candidates(subset, 50, 0)).tolist()) == set(range(10))
    shard = torch.cat(draw_candidates(DataLoader(data, sampler=rank, batch_size=4), 50, 0))
    assert set(shard.tolist()) == set(range(1, 50, 2))
    assert training_samples(subset) == 10


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=4),
        DataLoader(torch.arange(9), batch_size=4, sampler=WeightedRandomSampler([1.0] * 9, 9)),
        DataLoader(torch.arange(9), batch_size=None, sampler=SequentialSampler(range(9))),
        [DataLoader(torch.arange(9))],
    ],
)
def test_what_cannot_be_read_apart_from_training_is_not_read(loader):
    assert draw_candidates(loader, 4, seed=0) is None
