import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.measuring.similarity import (
    cosine,
    linear_cka,
    median_squared_sigma,
    rbf,
)

MEASURES = [lambda a, b: rbf(a, b, median_squared_sigma(a)), cosine, linear_cka]


def states(seed, samples=6, hidden=5):
    return torch.randn(samples, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("measure", MEASURES)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_similarity_is_one_for_equal_states_and_never_leaves_the_unit_interval(
    measure, seed, scale
):
    here, there = states(seed) * scale, states(seed + 1) * scale
    assert measure(here, here) == pytest.approx(1)
    assert 0 <= measure(here, there) <= 1


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_have_no_similarity(measure, bad):
    broken = states(1)
    broken[0, 0] = bad
    assert math.isnan(measure(states(0), broken))


def test_rbf_follows_its_formula():
    here, there = states(0), states(1)
    expected = sum(
        math.exp(-float(((a - b) ** 2).sum()) / (2 * 3.0)) for a, b in zip(here, there, strict=True)
    )
    assert rbf(here, there, 3.0) == pytest.approx(expected / len(here), rel=1e-6)


@given(scale=st.floats(0.001, 1000))
@settings(max_examples=20, deadline=None)
def test_with_the_median_width_rbf_does_not_depend_on_the_unit_of_the_states(scale):
    def similarity(a, b):
        return rbf(a, b, median_squared_sigma(a))

    here, there = states(0), states(0) + 0.3 * states(1)
    assert similarity(here * scale, there * scale) == pytest.approx(
        similarity(here, there), rel=1e-3
    )


def test_collapsed_states_are_alike_only_if_they_did_not_move():
    collapsed = torch.ones(4, 3)
    assert rbf(collapsed, collapsed, median_squared_sigma(collapsed)) == 1
    assert rbf(collapsed, collapsed + 1, median_squared_sigma(collapsed)) == 0
    assert linear_cka(collapsed, states(0, 4, 3)) == 0


def test_cka_equals_the_formula_in_feature_space_and_sees_no_rotation():
    here, there = states(0), states(1)
    x, y = here - here.mean(0), there - there.mean(0)
    expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    rotation = torch.linalg.qr(states(2, 5, 5)).Q
    assert linear_cka(here, there) == pytest.approx(float(expected), rel=1e-5)
    assert linear_cka(here, here @ rotation * 7) == pytest.approx(1)
