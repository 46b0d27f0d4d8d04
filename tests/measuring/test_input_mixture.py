import pytest
import torch

from recall_lightning.measuring.input_mixture import InputMixture
from recall_lightning.measuring.moments import FullMoments, LowRankMoments


def inputs_around(centres, each=4000, spread=(1.0, 0.2, 0.5)):
    noise = torch.randn(each * len(centres), 3, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(len(centres)).repeat_interleave(each)
    return torch.tensor(centres)[groups] + noise * torch.tensor(spread), groups


def measured(within, centres=([4.0, 0.0, 0.0], [0.0, 4.0, 0.0])):
    inputs, groups = inputs_around(centres)
    return inputs, InputMixture.of(inputs, groups, len(centres), within)


def drawn(mixture, number=20_000):
    return mixture.drawn(number, torch.Generator().manual_seed(1))[0]


def test_what_is_drawn_has_the_mean_and_covariance_of_what_was_measured():
    inputs, mixture = measured(FullMoments.empty(3))
    found = drawn(mixture)
    assert torch.allclose(found.mean(0), inputs.mean(0), atol=0.05)
    assert torch.allclose(found.T.cov(), inputs.T.cov(), atol=0.1)


def test_groups_lie_apart_as_they_did():
    _, mixture = measured(FullMoments.empty(3))
    found, groups = mixture.drawn(20_000, torch.Generator().manual_seed(1))
    first = found[groups == 0]
    assert len(first) == 10_000
    assert torch.allclose(first.mean(0), torch.tensor([4.0, 0.0, 0.0]), atol=0.05)
    assert torch.allclose(first.std(0), torch.tensor([1.0, 0.2, 0.5]), atol=0.05)


def test_wide_inputs_are_drawn_from_a_rank_and_a_diagonal():
    inputs, mixture = measured(LowRankMoments.empty(3, 1))
    assert torch.allclose(drawn(mixture).var(0), inputs.var(0), rtol=0.1)


def test_a_group_that_nothing_fell_in_has_no_part_and_a_small_one_has_some():
    groups = torch.tensor([0] * 95 + [2] * 5)
    mixture = InputMixture.of(torch.randn(100, 3), groups, 4, FullMoments.empty(3))
    assert mixture.counts.tolist() == [95, 0, 5, 0, 0]
    assert len(drawn(mixture, 5)) == 6


def test_what_is_left_out_is_nowhere():
    inputs, groups = torch.randn(41, 3), torch.tensor([0] * 40 + [1])
    inputs[40] = 100.0
    mixture = InputMixture.of(inputs, groups, 2, FullMoments.empty(3))
    assert torch.allclose(mixture.within.mean().matrix, inputs[:40].T.cov(correction=0), atol=1e-5)
    assert not InputMixture.of(inputs[:3], groups[:3], 2, FullMoments.empty(3)).is_known


@pytest.mark.parametrize(("groups", "kept"), [([0, 0, 0, 0, 1, 2], 0), ([0, 1, 2, 3, 1], 5)])
def test_no_mean_is_that_of_less_than_four_inputs(groups, kept):
    inputs = torch.randn(len(groups), 3)
    mixture = InputMixture.of(inputs, torch.tensor(groups), 4, FullMoments.empty(3))
    assert mixture.counts[-1] == kept
    assert not any(torch.equal(mean, one) for mean in mixture.means for one in inputs)


def test_what_moves_takes_its_spread_along():
    _, mixture = measured(FullMoments.empty(3))
    moved = drawn(mixture.at(mixture.means + 1.0))
    assert torch.allclose(moved, drawn(mixture) + 1.0, atol=1e-5)


def test_it_comes_back_from_its_state():
    _, mixture = measured(FullMoments.empty(3))
    again = InputMixture.from_state(mixture.state_dict())
    assert torch.equal(drawn(again), drawn(mixture))


def test_processes_that_add_their_sums_measure_common_means():
    inputs, groups = inputs_around(([4.0, 0.0, 0.0], [0.0, 4.0, 0.0]), each=10)
    whole = InputMixture.of(inputs, groups, 2, FullMoments.empty(3))
    half, others = (slice(None, None, 2), slice(1, None, 2))
    sent = []
    InputMixture.of(inputs[half], groups[half], 2, FullMoments.empty(3), sent_to(sent))
    received = iter(sent)
    mixture = InputMixture.of(
        inputs[others], groups[others], 2, FullMoments.empty(3), lambda own: own + next(received)
    )
    assert torch.allclose(mixture.means, whole.means)
    assert torch.equal(mixture.counts, whole.counts)


def sent_to(sent):
    def total(own):
        sent.append(own.clone())
        return own

    return total
