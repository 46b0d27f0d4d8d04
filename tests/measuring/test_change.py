"""A change is a rise above the last values that stays, whatever the scale and the trend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import PageHinkley

from recall_lightning.measuring.change import ChangeDetector, RunningDistance, mean_vector

NAMES = ("page_hinkley", "adwin", "kswin")


def noise(number, seed=0):
    return np.random.default_rng(seed).normal(size=number).tolist()


def found(detector, values):
    return [step for step, value in enumerate(values) if detector.update(value)]


@pytest.mark.parametrize("name", NAMES)
def test_a_rise_is_found_soon_and_nothing_before_it(name):
    values = noise(200) + [3 + each for each in noise(40, 1)]
    assert 200 <= found(ChangeDetector(name), values)[0] < 220


@pytest.mark.parametrize("name", NAMES)
def test_a_fall_is_no_change(name):
    assert found(ChangeDetector(name), noise(200) + [each - 3 for each in noise(100, 1)]) == []


def test_nothing_is_found_in_ten_thousand_values_of_noise():
    assert found(ChangeDetector(), noise(10_000)) == []


def test_a_loss_that_falls_all_the_time_has_no_change():
    falling = [5 * math.exp(-step / 300) + 0.3 * each for step, each in enumerate(noise(3_000))]
    assert found(ChangeDetector(), falling) == []


def test_a_loss_of_almost_nothing_changes_where_it_rises_by_a_part_of_what_it_fell_by():
    learned = [2 * math.exp(-step / 40) for step in range(300)]
    by_heart = [*learned, *(0.001 * math.exp(each) for each in noise(300))]
    unlucky = [0.03 * math.exp(each) for each in noise(300, 1)]
    assert found(ChangeDetector(least=50), by_heart + unlucky) == []
    assert 600 <= found(ChangeDetector(least=50), by_heart + [2.0] * 20)[0] < 608


def test_first_values_of_any_size_do_not_hide_a_change():
    values = [1e3] * 5 + noise(500) + [3 + each for each in noise(40, 1)]
    assert 505 <= found(ChangeDetector(least=50), values)[0] < 525


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_scale_and_offset_do_not_matter(scale, shift):
    values = [1.0, 0.5, 0.75] * 30 + [4.0] * 20
    moved = [scale * (value + shift) for value in values]
    assert found(ChangeDetector(), moved)[:1] == found(ChangeDetector(), values)[:1]


def test_a_change_before_the_least_number_of_values_does_not_count():
    values = noise(30) + [5.0] * 20 + noise(200, 1) + [5.0] * 20
    first = found(ChangeDetector(), values)[0]
    assert first < 50
    assert found(ChangeDetector(least=first + 100), values)[0] > first + 100


def test_what_is_not_finite_is_passed_over():
    detector, values = ChangeDetector(), noise(100) + [4.0] * 20
    gaps = [each for value in values for each in (value, math.nan, math.inf)]
    assert found(detector, gaps)[0] == 3 * found(ChangeDetector(), values)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_that_is_restored_goes_on_as_the_other_would(name):
    values = noise(150) + [2 + each for each in noise(60, 1)]
    whole, half = ChangeDetector(name), ChangeDetector(name)
    for value in values[:170]:
        half.update(value)
    restored = ChangeDetector(name)
    restored.load_state_dict(half.state_dict())
    expected = [step for step in found(whole, values) if step >= 170]
    assert [170 + step for step in found(restored, values[170:])] == expected


def test_one_of_rivers_own_detectors_is_copied_and_left_alone():
    given = PageHinkley(threshold=10)
    assert found(ChangeDetector(given), noise(100) + [4.0] * 20)
    assert given.drift_detected is False


def test_a_rise_that_would_be_none_does_not_count():
    values = noise(100) + [3.0] * 20
    assert found(ChangeDetector(), values)
    detector = ChangeDetector()
    assert not sum(detector.update(value, counts=False) for value in values)


def test_vectors_that_are_held_back_do_not_move_the_baseline():
    distance = RunningDistance()
    for vector in np.random.default_rng(0).normal(size=(60, 5)):
        distance.update(torch.from_numpy(vector))
    far = [distance.update(torch.full((5,), 6.0), hold=True) for _ in range(30)]
    assert far == [far[0]] * 30


def test_it_is_calm_until_values_stay_high():
    detector = ChangeDetector()
    found(detector, noise(100))
    assert detector.is_calm
    found(detector, [3.0, 3.0])
    assert not detector.is_calm


@pytest.mark.parametrize("wrong", ["adwin2", 3])
def test_another_detector_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match="detector="):
        ChangeDetector(wrong)


def test_the_distance_rises_where_vectors_move_away_and_is_restored():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 5)))
    distance, other = RunningDistance(), RunningDistance()
    usual = [distance.update(vector) for vector in vectors]
    assert distance.update(torch.full((5,), 6.0)) > max(usual[11:])
    for vector in vectors[:30]:
        other.update(vector)
    restored = RunningDistance()
    restored.load_state_dict(other.state_dict())
    assert [restored.update(vector) for vector in vectors[30:]] == usual[30:]


def test_a_unit_that_never_varies_does_not_decide():
    distance = RunningDistance()
    for step in range(40):
        distance.update(torch.tensor([0.0, step % 5]))
    assert distance.update(torch.tensor([1e-6, 2.0])) < 0


def test_channels_of_images_and_widths_of_tokens_are_what_is_averaged_for():
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(mean_vector(images), images.mean(dim=(0, 2, 3)))
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(mean_vector(tokens), tokens.mean(dim=(0, 1)))
