import pytest
import torch
from torch.utils.data import DistributedSampler

from recall_lightning.data.sampling import ReplaySampler, SeededSampler, draw_jointly, mix_seed


def batches_of(sampler: ReplaySampler) -> list[list[int]]:
    size, order = sampler.batch_size + sampler.num_replayed, list(sampler)
    return [order[first : first + size] for first in range(0, len(order), size)]


def test_seeds_of_neighbouring_pairs_differ() -> None:
    assert len({mix_seed(seed, index) for seed in range(20) for index in range(-50, 50)}) == 2000
    assert 0 <= mix_seed(2**40, -1) < 2**32


@pytest.mark.parametrize("samples", [10, 12])
def test_stored_samples_follow_each_batch_of_new_ones(samples: int) -> None:
    sampler = ReplaySampler(range(samples), range(5), batch_size=4, num_replayed=2, seed=0)
    batches = batches_of(sampler)
    new = [[index for index in batch if index < samples] for batch in batches]
    assert [len(batch) for batch in new] == ([4, 4, 2] if samples == 10 else [4, 4, 4])
    own = [index for batch in new for index in batch]
    assert own == list(SeededSampler(range(samples), seed=0))  # as without replay
    for batch in batches:
        stored = [index - samples for index in batch if index >= samples]
        assert len(set(stored)) == 2
        assert set(stored) <= set(range(5))
    assert len(sampler) == len(list(sampler))


def test_every_stored_sample_is_drawn_equally_often() -> None:
    sampler = ReplaySampler(range(4000), range(10), batch_size=1, num_replayed=2, seed=0)
    drawn = torch.tensor([index - 4000 for index in sampler if index >= 4000])
    expected = 4000 * 2 / 10
    # the variance of a count is 4000 × 0.2 × 0.8 = 640; 5 standard deviations
    assert (drawn.bincount(minlength=10) - expected).abs().max() < 5 * 640**0.5


def test_every_pass_is_the_same_and_draws_from_no_global_generator() -> None:
    sampler = ReplaySampler(range(10), range(5), batch_size=4, num_replayed=2, seed=0)
    before = torch.get_rng_state()
    assert list(sampler) == list(sampler)
    assert torch.equal(torch.get_rng_state(), before)
    other = ReplaySampler(range(10), range(5), batch_size=4, num_replayed=2, seed=1)
    for stored in (False, True):
        served, others = ([i for i in each if (i >= 10) == stored] for each in (sampler, other))
        assert served != others
    assert isinstance(sampler, DistributedSampler)


def test_joint_draw_is_without_replacement_and_in_proportion() -> None:
    datasets = [list(range(300)), list(range(1000, 1100))]
    drawn = list(draw_jointly(datasets, 200, seed=0))
    assert len(set(drawn)) == 200
    shares = [
        sum(value < 1000 for value in draw_jointly(datasets, 40, seed)) for seed in range(200)
    ]
    # hypergeometric: a mean of 30, a variance of 40 × 3/16 × 360/399
    assert abs(sum(shares) / 200 - 30) < 5 * (40 * 3 / 16 * 360 / 399 / 200) ** 0.5
    assert list(draw_jointly(datasets, 40, seed=0)) != list(draw_jointly(datasets, 40, seed=1))


def test_skipping_leaves_out_the_front_and_keeps_the_length() -> None:
    for sampler in (
        SeededSampler(range(10), seed=0),
        ReplaySampler(range(10), range(5), batch_size=4, num_replayed=2, seed=0),
    ):
        whole, length = list(sampler), len(sampler)
        sampler.skipped = 4
        assert list(sampler) == whole[4:]
        assert len(sampler) == length
        sampler.skipped = 100
        assert list(sampler) == []


def test_processes_share_one_order() -> None:
    parts = [SeededSampler(range(10), seed=3, num_replicas=2, rank=rank) for rank in range(2)]
    together = [index for pair in zip(*parts, strict=True) for index in pair]
    assert together == list(SeededSampler(range(10), seed=3))
    assert sorted(parts[0]) == parts[0].sampled().tolist()
