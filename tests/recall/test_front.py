import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall_lightning.recall.front import FrontPoint, keep_of, measured_front


def front_of(left):
    tries = []

    def tried(keep):
        tries.append(keep)
        return FrontPoint(keep, left(keep), loss=0.0)

    return measured_front(tried), tries


@given(st.floats(-5, 8), st.floats(0.4, 1.5), st.floats(0.75, 0.99))
def test_what_is_chosen_leaves_what_was_asked_for_to_a_hundredth(middle, power, plasticity):
    def left(keep):
        return 1 / (1 + (keep / math.exp(middle)) ** power)

    front, tries = front_of(left)
    assert left(keep_of(front, plasticity)) == pytest.approx(plasticity, abs=1e-2)
    assert len(tries) == len(front) <= 10


@given(st.floats(-4, 4), st.floats(0.5, 2.0), st.sampled_from([0.5, 0.8, 0.95]))
def test_it_does_so_of_other_curves_to_some_hundredths(middle, power, plasticity):
    def left(keep):
        return math.exp(-((keep / math.exp(middle)) ** power))

    front, _ = front_of(left)
    assert left(keep_of(front, plasticity)) == pytest.approx(plasticity, abs=0.05)


@given(st.floats(-8, 8))
def test_points_lie_by_keep_and_reach_from_nearly_all_of_the_gain_to_little_of_it(middle):
    front, _ = front_of(lambda keep: 1 / (1 + keep / math.exp(middle)))
    assert sorted(front, key=lambda point: point.keep) == front
    assert front[0].plasticity >= 0.99
    assert front[-1].plasticity <= 0.3


@given(st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_less_is_kept_where_more_is_to_be_left(plasticity, more):
    front, _ = front_of(lambda keep: 1 / (1 + keep))
    assert keep_of(front, plasticity + more) < keep_of(front, plasticity)


@pytest.mark.parametrize("left", [1.0, 0.0])
def test_a_merge_that_changes_nothing_is_tried_but_a_few_times(left):
    front, _ = front_of(lambda keep: left)
    assert len(front) == 5


def test_the_first_place_counts_where_the_loss_is_higher_between_both_than_at_either():
    front = [FrontPoint(k, p, 0.0) for k, p in ((0.1, 1.0), (1.0, 0.5), (10.0, 0.95), (100, 0.1))]
    assert keep_of(front, 0.9) < 1


def test_a_loss_that_is_infinite_is_past_every_choice():
    front = [FrontPoint(0.1, 0.99, 1.0), FrontPoint(1.0, -5.0, math.inf)]
    assert 0.1 < keep_of(front, 0.95) < 0.2


def points(*of_each):
    return [FrontPoint(keep, plasticity, 0.0) for keep, plasticity in of_each]


def test_where_no_merge_leaves_the_share_the_old_counts_as_far_as_that_costs_little():
    front = points((1e-6, 0.973), (1e-3, 0.9735), (1.0, 0.9749), (32.0, 0.64))
    assert 1 < keep_of(front, 0.98) == keep_of(front, 0.999) < 2


def test_a_merge_that_leaves_the_share_counts_though_those_with_less_of_the_old_do_not():
    front = points((1e-6, 0.97), (1.0, 0.99), (32.0, 0.5))
    assert 1 < keep_of(front, 0.98) < 32


def test_beyond_the_first_merge_the_old_counts_less_while_that_leaves_more():
    assert keep_of(points((0.1, 0.992), (1.0, 0.5)), 0.999) < 0.1
