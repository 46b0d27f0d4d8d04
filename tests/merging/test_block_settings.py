import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.block_settings import setting_by_weight


def blocks(count):
    return [
        Block(f"layers.{i}", 2, 1 / count, "", (f"w{i}.attn", f"w{i}.mlp")) for i in range(count)
    ]


def test_a_number_is_for_every_weight():
    assert set(setting_by_weight(0.3, blocks(3)).values()) == {0.3}


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_list_as_long_as_the_model_is_deep_gives_each_block_its_own(values):
    by_weight = setting_by_weight(values, blocks(len(values)))
    assert [by_weight[f"w{i}.mlp"] for i in range(len(values))] == pytest.approx(values)


def test_a_shorter_list_is_interpolated_over_depth():
    by_weight = setting_by_weight([0.0, 1.0], blocks(5))
    assert [by_weight[f"w{i}.attn"] for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_of_patterns_the_first_that_matches_counts_whether_of_a_weight_or_of_a_block():
    by_weight = setting_by_weight({"*.mlp": 0.1, "layers.1": 0.2, "*": 0.3}, blocks(2))
    assert by_weight == {"w0.attn": 0.3, "w0.mlp": 0.1, "w1.attn": 0.2, "w1.mlp": 0.1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"*.mlp": 0.1}, "the weight 'w0.attn' matches none of the patterns *.mlp"),
        ({"*.bias": 0.1, "*": 0.2}, "the pattern '*.bias' matches no weight"),
        ([], "must be a number or a list"),
        ("half", "'half' must be a number"),
        ([0.1, "half"], "must be a number or a list of numbers"),
        (True, "must be a number or a list of numbers"),
    ],
)
def test_what_is_wrong_is_said(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        setting_by_weight(setting, blocks(2))
