import numpy as np
import pytest
import torch

from recall_lightning.measuring.typical_samples import choose_typical_samples


def clusters(per_cluster=20, centres=5, hidden=3):
    generator = torch.Generator().manual_seed(0)
    centre = 100 * torch.randn(centres, 1, hidden, generator=generator)
    return (centre + torch.randn(centres, per_cluster, hidden, generator=generator)).flatten(0, 1)


def test_every_cluster_sends_one_sample():
    chosen = choose_typical_samples(clusters(), 5)
    assert sorted((chosen // 20).tolist()) == [0, 1, 2, 3, 4]


def test_the_sample_is_the_one_nearest_to_its_clusters_mean():
    points = clusters()
    for index in choose_typical_samples(points, 5).tolist():
        cluster = points[index // 20 * 20 : index // 20 * 20 + 20]
        distance = (cluster - cluster.mean(0)).norm(dim=1)
        assert int(distance.argmin()) == index % 20


def test_large_pools_are_clustered_too():
    assert len(choose_typical_samples(torch.randn(5000, 2), 8)) == 8


def test_repeated_candidates_give_fewer_samples_without_repeats():
    chosen = choose_typical_samples(torch.tensor([[0.0], [0.0], [5.0], [5.0]]), 3)
    assert len(chosen) == len(set(chosen.tolist())) == 2


def test_the_choice_depends_on_its_seed_alone():
    points = torch.randn(100, 4)
    first = choose_typical_samples(points, 8, seed=1)
    np.random.rand(3)
    assert torch.equal(first, choose_typical_samples(points, 8, seed=1))
    assert not torch.equal(first, choose_typical_samples(points, 8, seed=2))


def test_too_few_or_broken_candidates_are_refused():
    with pytest.raises(ValueError, match=r"must be 1 to 4, .*, not 9"):
        choose_typical_samples(torch.randn(4, 2), 9)
    with pytest.raises(ValueError, match="NaN"):
        choose_typical_samples(torch.full((4, 2), float("nan")), 2)
