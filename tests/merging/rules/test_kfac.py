from dataclasses import replace

import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging.coefficients.kronecker import KroneckerCoefficient
from recall_lightning.merging.rules import (
    Importance,
    KfacImportance,
    KfacSubspace,
    MergeInputs,
    Subspace,
)
from recall_lightning.merging.structure import Structure

MAP = LinearMap("layer.weight", "layer.bias", "linear", ("layer",), 4)
BLOCK = Block("layer", 11, 1.0, "layer", ("layer.weight", "layer.bias", "norm.weight"))


def moments(width):
    rows = torch.randn(20, width)
    return FullMoments(rows.T @ rows / 20, torch.ones(()))


def measured():
    return MergeInputs(
        Structure([BLOCK], [MAP]),
        importance={"norm.weight": torch.tensor([0.0, 2.0])},
        old_moments={MAP.weight: moments(4)},
        new_moments={MAP.weight: moments(4)},
        old_output_moments={MAP.weight: moments(2)},
        new_output_moments={MAP.weight: moments(2)},
    )


@pytest.mark.parametrize("rule", [KfacImportance(), KfacSubspace()])
def test_weight_and_bias_of_a_map_share_one_matrix(rule):
    found = rule.coefficients(measured())
    assert isinstance(found["layer.weight"], KroneckerCoefficient)
    assert found["layer.weight"] is found["layer.bias"]


@pytest.mark.parametrize(
    ("rule", "plain"),
    [(KfacImportance(0.4), Importance(0.4)), (KfacSubspace(2.0), Subspace(2.0))],
)
def test_all_else_has_what_the_plain_rule_gives(rule, plain):
    inputs = measured()
    found, expected = rule.coefficients(inputs), plain.coefficients(inputs)
    torch.testing.assert_close(found["norm.weight"], expected["norm.weight"])
    unknown = replace(inputs, old_output_moments={})
    found, expected = rule.coefficients(unknown), plain.coefficients(unknown)
    assert type(found["layer.weight"]) is type(expected["layer.weight"])


def test_a_map_that_had_no_input_on_one_side_is_solved_as_by_the_plain_rule():
    inputs = measured()
    zero = FullMoments(torch.zeros(4, 4), torch.ones(()))
    never_before = replace(inputs, old_moments={MAP.weight: zero})
    assert KfacSubspace().coefficients(never_before)["layer.weight"] == 0.0
    not_now = replace(inputs, new_moments={MAP.weight: zero})
    found = KfacSubspace().coefficients(not_now)["layer.weight"]
    assert 0.9 < found.mean <= 1


def merged_outputs(rule, old_noise=None, new_noise=None):
    """What the snapshot's weight is along two outputs, each seen by one side alone."""

    def of(diagonal, noise=None):
        known = None if noise is None else torch.tensor(noise)
        return {MAP.weight: FullMoments(torch.diag(torch.tensor(diagonal)), torch.ones(()), known)}

    inputs = replace(
        measured(),
        old_moments=of([1.0] * 4),
        new_moments=of([1.0] * 4),
        old_output_moments=of([1.0, 0.0], old_noise),
        new_output_moments=of([0.0, 1.0], new_noise),
    )
    pulled = rule.coefficients(inputs)["layer.weight"].pull(torch.ones(2, 4))
    torch.testing.assert_close(pulled, pulled[:, :1].expand(2, 4))
    return pulled[:, 0]


@pytest.mark.parametrize(
    ("noises", "ridge"),
    [
        ((0.0, 0.25), 1.0),  # half of 0.5, the squared norm above that of the mean
        ((0.25, 0.1), 1.0),  # the less certain side tells
        ((None, 0.25), 1.0),
        ((0.0, 0.01), 0.1),  # at least
        ((9.0, 0.0), 19.0),
        ((None, None), 0.1),
    ],
)
def test_outputs_count_as_much_as_their_spread_over_samples_tells(noises, ridge):
    found = merged_outputs(KfacSubspace(), *noises)
    weight = (2 + ridge) / (2 + 2 * ridge)  # relative to its mean an output has 2 or 0
    torch.testing.assert_close(found, torch.tensor([weight, 1 - weight]))
    torch.testing.assert_close(merged_outputs(KfacSubspace(output_ridge=ridge), 0.3, 0.4), found)


@pytest.mark.parametrize("wrong", [0.0, float("inf"), "none"])
def test_bad_ridges_are_refused(wrong):
    with pytest.raises(ValueError, match=f"output_ridge={wrong!r}"):
        KfacSubspace(output_ridge=wrong)
