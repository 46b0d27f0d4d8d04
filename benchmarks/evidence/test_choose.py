import pytest

from benchmarks.evidence.choose import best_value, matched_value, rounded


def test_the_best_value_follows_the_direction_of_the_score():
    assert best_value({1.0: 0.2, 2.0: 0.5}, higher_is_better=True) == 2.0
    assert best_value({1.0: 0.2, 2.0: 0.5}, higher_is_better=False) == 1.0


@pytest.mark.parametrize("plasticity", [{1.0: 0.9, 10.0: 0.8, 100.0: 0.6}, {1.0: 1.0, 100.0: 2.0}])
def test_a_trial_of_the_wanted_plasticity_is_taken_as_it_is(plasticity):
    for value, reached in plasticity.items():
        assert matched_value(plasticity, reached) == pytest.approx(value)


def test_between_two_trials_the_value_is_interpolated_and_beyond_them_the_nearest():
    plasticity = {1.0: 0.9, 100.0: 0.7}
    assert matched_value(plasticity, 0.75) == pytest.approx(10**1.5)
    assert matched_value(plasticity, 0.95) == 1.0
    assert matched_value(plasticity, 0.1) == 100.0


def test_of_two_crossings_the_stronger_protection_is_taken():
    assert matched_value({1.0: 0.9, 10.0: 0.7, 100.0: 0.9}, 0.8) > 10


def test_values_are_written_so_that_they_read_back():
    assert [float(rounded(v)) for v in (0.03, 12345.0, 1e5)] == [0.03, 12345.0, 1e5]
