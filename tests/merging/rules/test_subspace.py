import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments, RowCounts
from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.functional import regmean
from recall_lightning.merging.rules import MergeInputs, SubspaceRule

BLOCK = Block("layer", 9, 1.0, "layer", ("layer.weight", "layer.bias", "norm.weight"))
LINEAR = LinearMap("layer.weight", "layer.bias", "linear", ("layer",), 3)


def full(*diagonal):
    return FullMoments(torch.diag(torch.tensor(diagonal)), torch.tensor(1.0))


def given(old, new, linear_map=LINEAR, **kwargs):
    named = [{} if m is None else {linear_map.weight: m} for m in (old, new)]
    return MergeInputs(
        [BLOCK], maps=[linear_map], old_moments=named[0], new_moments=named[1], **kwargs
    )


def test_a_maps_weight_and_bias_share_one_matrix_and_the_rest_has_its_number():
    rule = SubspaceRule(new_inputs=4.0, ridge=0.01, mix=0.3)
    found = rule.coefficients(given(full(1.0, 1.0, 1.0), full(1.0, 1.0, 1.0)))
    assert isinstance(found["layer.weight"], MapCoefficient)
    assert found["layer.bias"] is found["layer.weight"]
    # an input that all tasks see alike is what the number is for
    assert found["norm.weight"] == pytest.approx(found["layer.weight"].mean)


def test_the_number_grows_with_the_tasks_as_the_sums_of_moments_do():
    rule, ones = SubspaceRule(new_inputs=2.0, ridge=0.05, mix=0.5), full(1.0, 1.0, 1.0)
    for tasks in (1, 2, 7):
        # r is relative to the old moments, so the number's ridge counts per task
        found = rule.coefficients(given(ones.scaled(tasks), ones, earlier_tasks=tasks))
        assert found["norm.weight"] == pytest.approx((tasks + 0.025) / (tasks + 2.05))
        assert found["norm.weight"] == pytest.approx(found["layer.weight"].mean, abs=0.03)


def test_embedding_rows_are_merged_by_how_often_they_were_looked_up():
    table = LinearMap("layer.weight", None, "embedding", ("layer",), 4)
    counts = [torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.5, 0.0])]
    old, new = (RowCounts(c, torch.tensor(1.0)) for c in counts)
    share = 0.3
    found = SubspaceRule(4.0, 0.01, share).coefficients(given(old, new, table))["layer.weight"]
    then, now = torch.randn(4, 2), torch.randn(4, 2)
    expected = regmean(
        [then, now], [share, 1 - share], [counts[0] / share, 4 * counts[1] / (1 - share)],
        ridge=0.01 / 5,
    )  # fmt: skip
    torch.testing.assert_close(now + found * (then - now), expected)
    assert found.flatten()[-1] == pytest.approx(share)


def test_an_embedding_that_nobody_used_keeps_the_live_rows():
    table = LinearMap("layer.weight", None, "embedding", ("layer",), 2)
    never = RowCounts(torch.zeros(2), torch.tensor(0.0))
    found = SubspaceRule().coefficients(given(never, never, table))["layer.weight"]
    assert found.tolist() == [[0], [0]]


def test_a_map_without_old_inputs_keeps_the_live_weights_and_one_not_measured_takes_the_number():
    rule, zeros, ones = SubspaceRule(), full(0.0, 0.0, 0.0), full(1.0, 1.0, 1.0)
    found = rule.coefficients(given(zeros, ones))
    assert found["layer.weight"] == found["layer.bias"] == 0.0
    found = rule.coefficients(given(None, ones))
    assert found["layer.weight"] == found["norm.weight"]


def test_a_lora_pair_shares_one_matrix():
    pair = LinearMap("layer.weight", None, "linear", ("layer",), 3, second_factor="norm.weight")
    found = SubspaceRule().coefficients(given(full(1.0, 2.0, 3.0), full(1.0, 1.0, 1.0), pair))
    assert found["norm.weight"] is found["layer.weight"]
