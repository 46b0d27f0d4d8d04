import pytest
import torch

from recall_lightning.merging.blockwise import merge_snapshots_
from recall_lightning.merging.running_statistics import means_of_variances, spread_of_means

NAMES = ("norm.running_mean", "norm.running_var")


def described(activations):
    """Return what a layer's statistics of activations (samples, channels) are."""
    both = activations.mean(0), activations.var(0, correction=0)
    return dict(zip(NAMES, (value.float() for value in both), strict=True))


def activations(seed, samples):
    generator = torch.Generator().manual_seed(seed)
    apart = 3 * torch.randn(5, generator=generator)
    return apart + torch.randn(samples, 5, generator=generator, dtype=torch.float64)


def shares(*numbers):
    return [dict.fromkeys(NAMES, number) for number in numbers]


@pytest.mark.parametrize("counts", [(300, 100), (50, 150, 200), (10, 20, 30, 40)])
def test_merged_statistics_are_those_of_all_activations_together(counts):
    populations = [activations(seed, count) for seed, count in enumerate(counts)]
    live, *snapshots = map(described, populations)
    merge_snapshots_(live, snapshots, shares(*(count / sum(counts) for count in counts[1:])))
    torch.testing.assert_close(live, described(torch.cat(populations)))


def test_elements_have_weights_of_their_own():
    live, then = (described(activations(seed, 50)) for seed in (0, 1))
    given = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    merged = {name: tensor.clone() for name, tensor in live.items()}
    merge_snapshots_(merged, [then], shares(given))
    for channel, number in enumerate(given.tolist()):
        alone = {name: tensor.clone() for name, tensor in live.items()}
        merge_snapshots_(alone, [then], shares(number))
        for name in NAMES:
            torch.testing.assert_close(merged[name][channel], alone[name][channel])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("several", [False, True])
def test_a_weight_of_0_or_1_gives_a_models_own_statistics_bit_for_bit(dtype, several):
    live, then, other = (
        {name: tensor.to(dtype) for name, tensor in described(activations(seed, 50)).items()}
        for seed in (0, 1, 2)
    )
    before = {name: tensor.clone() for name, tensor in live.items()}
    snapshots = [then, other] if several else [then]
    merge_snapshots_(live, snapshots, shares(0.0, 0.0)[: len(snapshots)])
    assert all(torch.equal(live[name], before[name]) for name in NAMES)
    merge_snapshots_(live, snapshots, shares(1.0, 0.0)[: len(snapshots)])
    assert all(torch.equal(live[name], then[name]) for name in NAMES)


def test_models_that_agree_on_the_mean_have_their_variances_averaged():
    live, then = ({NAMES[0]: torch.ones(1), NAMES[1]: torch.tensor([v])} for v in (2.0, 4.0))
    merge_snapshots_(live, [then], shares(0.25))
    assert live == {NAMES[0]: torch.ones(1), NAMES[1]: torch.tensor([2.5])}


def test_the_variances_own_weight_counts_where_the_means_is_another():
    live, then = ({NAMES[0]: torch.tensor([m]), NAMES[1]: torch.ones(1)} for m in (0.0, 2.0))
    merge_snapshots_(live, [then], [{NAMES[0]: 0.25, NAMES[1]: 0.5}])
    assert live == {NAMES[0]: torch.tensor([0.5]), NAMES[1]: torch.tensor([2.0])}


@pytest.mark.parametrize("other", ["norm.weight", "other.running_mean", "norm.mean"])
def test_a_variance_whose_mean_is_not_merged_is_a_weight_like_others(other):
    live, then = ({other: torch.tensor([v]), NAMES[1]: torch.tensor([v])} for v in (1.0, 3.0))
    merge_snapshots_(live, [then], [{other: 0.5, NAMES[1]: 0.5}])
    assert live == {other: torch.tensor([2.0]), NAMES[1]: torch.tensor([2.0])}


@pytest.mark.parametrize(
    "means", [(0.0, float("nan")), (float("inf"), 0.0), (-300.0, 300.0)], ids=str
)
@pytest.mark.parametrize("check_finite", [True, False])
def test_a_variance_that_would_not_be_finite_refuses_the_merge(means, check_finite):
    live, then = (
        {NAMES[0]: torch.tensor([m]).half(), NAMES[1]: torch.ones(1).half()} for m in means
    )
    before = {name: tensor.clone() for name, tensor in live.items()}
    with pytest.raises(ValueError, match=r"'norm\.running_"):
        merge_snapshots_(live, [then], shares(0.5), check_finite=check_finite)
    assert all(torch.equal(live[n].nan_to_num(7.0), before[n].nan_to_num(7.0)) for n in NAMES)


def test_means_far_apart_in_half_precision_have_a_variance_that_it_holds():
    live, then = (
        {NAMES[0]: torch.tensor([m]).half(), NAMES[1]: torch.ones(1).half()} for m in (0, 300.0)
    )
    merge_snapshots_(live, [then], shares(0.5))
    assert live[NAMES[1]].item() == pytest.approx(1 + 300**2 / 4, rel=1e-3)


def test_a_layer_that_is_the_whole_model_has_a_mean_too():
    assert means_of_variances({"running_var": [3], "running_mean": [3]}) == {
        "running_var": "running_mean"
    }


def test_the_spread_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    live, *means = 1e3 + 1e-4 * torch.rand(4, 1000, generator=generator)
    assert spread_of_means(live, means, [1 / 3, 1 / 3, 1 / 3 + 1e-9]).min() >= 0
