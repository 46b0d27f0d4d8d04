import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall_lightning.merging.coefficients.softmax import softmax_coefficients, softmax_weights


@given(similarity=st.floats(0, 1), temperature=st.floats(0.05, 50))
def test_the_coefficient_is_the_softmax_of_the_two_similarities(similarity, temperature):
    old, new = math.exp(similarity / temperature), math.exp(1 / temperature)
    coefficient = softmax_coefficients({"block": [similarity]}, temperature)["block"][0]
    assert coefficient == pytest.approx(old / (old + new), rel=1e-9)


def test_at_temperature_one_it_lies_between_0_269_and_a_half():
    ends = softmax_coefficients({"moved": [0.0], "unmoved": [1.0]})
    assert ends["moved"][0] == pytest.approx(1 / (1 + math.e))
    assert ends["unmoved"] == [0.5]


def test_a_tiny_temperature_does_not_overflow():
    assert softmax_coefficients({"moved": [0.0], "unmoved": [1.0]}, 1e-9) == {
        "moved": [0.0],
        "unmoved": [0.5],
    }


@given(similarity=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_weights_sum_to_one_and_follow_similarity(similarity):
    weights = softmax_weights(similarity, 0.3)
    assert sum(weights) == pytest.approx(1)
    by_weight = sorted(zip(weights, similarity, strict=True))
    assert [s for _, s in by_weight] == sorted(similarity)


def test_several_snapshots_share_the_softmax_with_the_live_model():
    assert softmax_coefficients({"unmoved": [1.0, 1.0]}) == {"unmoved": [1 / 3, 1 / 3]}
