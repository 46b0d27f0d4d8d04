import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage

from recall_lightning.measuring.moments import FullMoments, LowRankMoments, moments_from, noise_of
from tests.support.moments import rows

few = settings(max_examples=15, deadline=None)


@given(seed=st.integers(0, 99))
@few
def test_the_shrinkage_is_that_of_ledoit_and_wolf(seed):
    inputs = rows(seed, rank=3)
    for moments in (FullMoments.empty(6), LowRankMoments.empty(6, 6)):
        moments.noise = noise_of(moments, [moments.add_sample(row[None]) for row in inputs])
        torch.testing.assert_close(moments.diagonal, inputs.square().sum(0))
        theirs = ledoit_wolf_shrinkage(inputs, assume_centered=True)  # biased by (n − 1) / n
        assert moments.mean().shrinkage == pytest.approx(min(1.0, theirs * 20 / 19), rel=1e-3)


def test_the_noise_of_a_sketch_is_nearly_that_of_the_whole():
    inputs = torch.randn(400, 80, generator=torch.Generator().manual_seed(0))
    inputs *= torch.logspace(1, -1, 80)
    noises = []
    for moments in (FullMoments.empty(80), LowRankMoments.empty(80, 8)):
        noises.append(noise_of(moments, [moments.add_sample(part) for part in inputs.split(10)]))
    assert float(noises[1] / noises[0]) == pytest.approx(1.0, abs=0.3)


def test_one_sample_tells_nothing_and_who_does_not_ask_is_told_nothing():
    moments = FullMoments.empty(3)
    assert moments.shrinkage is None
    moments.noise = noise_of(moments, [moments.add_sample(torch.eye(3)[:1])])
    assert moments.shrinkage == 1.0


def test_noise_is_added_scaled_and_kept_as_the_moments_are():
    moments = FullMoments(torch.eye(3), torch.ones(()), torch.tensor(0.5))
    for kept in (moments, LowRankMoments.of(moments, 2)):
        twice = moments_from(kept.scaled(2.0).padded(4).state_dict())
        assert float(twice.noise) == 2.0
        assert float(twice.plus(twice).noise) == 4.0
        assert moments_from(twice.state_dict()).shrinkage == twice.shrinkage


@pytest.mark.parametrize("scale", [1e-16, 1e16])
def test_the_shrinkage_does_not_depend_on_how_large_the_inputs_are(scale):
    for moments in (FullMoments.empty(6), LowRankMoments.empty(6, 2)):
        moments.noise = noise_of(moments, [moments.add_sample(part) for part in rows(0).split(5)])
        large = moments.scaled(scale**2)
        assert large.shrinkage == pytest.approx(moments.shrinkage, rel=1e-4)
        assert bool(moments.noise.isfinite())
