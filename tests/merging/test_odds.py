import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.odds import with_kept_odds

keeps = st.floats(0.01, 100.0)
shares = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4)
"""Those of the live model and of one to three snapshots, up to their sum."""


def weights_of(raw):
    """Turn numbers into weights of snapshots that leave the live model a part."""
    live, *rest = raw
    total = live + 0.01 + sum(rest)
    return [each / total for each in rest]


def odds(weights):
    return [weight / (1 - sum(weights)) for weight in weights]


def kept(weights, keep):
    return [own["w"] for own in with_kept_odds([{"w": weight} for weight in weights], keep)]


@given(shares, keeps)
def test_the_odds_of_every_snapshot_against_the_live_model_are_multiplied(raw, keep):
    weights = weights_of(raw)
    expected = [keep * before for before in odds(weights)]
    assert odds(kept(weights, keep)) == pytest.approx(expected, rel=1e-6)


@given(st.floats(0.001, 1000.0), st.floats(0.0, 100.0), keeps)
def test_of_the_proximal_step_it_multiplies_the_penalty(penalty, curvature, keep):
    def step(penalty):
        return penalty * curvature / (1 + penalty * curvature)

    assert kept([step(penalty)], keep) == pytest.approx([step(keep * penalty)], rel=1e-6)


@given(shares)
def test_a_keep_of_one_changes_no_bit(raw):
    weights = weights_of(raw)
    assert kept(weights, 1.0) == weights


@given(shares, keeps, st.floats(1.01, 10.0))
def test_a_larger_keep_gives_every_snapshot_more(raw, keep, factor):
    weights = weights_of(raw)
    less, more = kept(weights, keep), kept(weights, factor * keep)
    assert all(b > a or a < 1e-12 for a, b in zip(less, more, strict=True))
    assert 0 <= sum(less) <= sum(more) <= 1 + 1e-9


@given(keeps)
def test_nothing_and_everything_stay(keep):
    assert kept([0.0], keep) == [0.0]
    assert kept([1.0], keep) == pytest.approx([1.0])
    assert kept([0.0, 1.0, 0.0], keep) == pytest.approx([0.0, 1.0, 0.0])


@given(st.lists(shares.filter(lambda raw: len(raw) == 3), min_size=1, max_size=5), keeps)
def test_tensors_are_changed_as_numbers_are_element_by_element(rows, keep):
    weights = [weights_of(raw) for raw in rows]
    columns = torch.tensor(weights, dtype=torch.float64).T
    changed = torch.stack(kept(list(columns), keep))
    expected = torch.tensor([kept(own, keep) for own in weights], dtype=torch.float64)
    torch.testing.assert_close(changed.T, expected)


def test_a_tensor_beside_a_number_broadcasts():
    first, second = kept([torch.tensor([0.5, 0.0]), 0.25], 3.0)
    torch.testing.assert_close(first, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(second, torch.tensor([0.3, 0.5]))


def test_what_is_given_is_left_as_it_was():
    tensor = torch.tensor([0.25])
    given = [{"w": tensor}]
    for keep in (1.0, 2.0):
        with_kept_odds(given, keep)[0]["w"] = 0.0
    assert given[0]["w"] is tensor
    assert tensor.item() == 0.25


class Matrix(MapCoefficient):
    def pull(self, difference, first_row=0):
        return difference / 2

    def scaled(self, strength):
        return self


def test_a_matrix_is_left_to_the_rule_that_made_it():
    matrix = Matrix(None, mean=0.5, condition=1.0)
    assert with_kept_odds([{"a": 0.5, "w": matrix}], 3.0) == [{"a": 0.75, "w": matrix}]


@pytest.mark.parametrize(
    "weights", [[Matrix(None, 0.5, 1.0)] * 2, [0.5, Matrix(None, 0.5, 1.0)], [1.0, 1.0]]
)
def test_what_a_merge_refuses_reaches_it_as_it_is(weights):
    assert kept(weights, 0.5) == weights
