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


def test_bad_ridges_are_refused():
    with pytest.raises(ValueError, match="output_ridge=0"):
        KfacSubspace(output_ridge=0.0)


def test_outputs_on_which_nothing_depended_count_on_both_sides_as_much_as_the_mean():
    seen = FullMoments(torch.diag(torch.tensor([1.0, 0.0])), torch.ones(()))
    inputs = replace(
        measured(),
        old_moments={MAP.weight: FullMoments(torch.eye(4), torch.ones(()))},
        new_moments={MAP.weight: FullMoments(torch.eye(4), torch.ones(()))},
        old_output_moments={MAP.weight: seen},
        new_output_moments={MAP.weight: FullMoments(seen.matrix.flip(0, 1), torch.ones(()))},
    )
    taken = KfacSubspace().coefficients(inputs)["layer.weight"].pull(torch.ones(2, 4))
    # of its mean, an output's moments are 2 or 0, and 1 is added: 3 against 1
    torch.testing.assert_close(taken, torch.tensor([[0.75], [0.25]]).expand(2, 4))
