import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lightning.merging.functional.sparsification import magnitude_mask, random_mask, rescaled

shares = st.floats(1e-3, 1)


def key_mask(shape=(64,), density=0.5, seed=0, name="w", model_key="0"):
    return random_mask(torch.Size(shape), density, seed, name, model_key)


@given(values=st.lists(st.integers(-3, 3), max_size=40), density=shares, gamma=st.floats(0, 0.99))
@settings(max_examples=200, deadline=None)
def test_what_is_kept_is_a_slice_of_the_stable_order_by_magnitude(values, density, gamma):
    gamma = min(gamma, 1 - density)
    delta, n = torch.tensor(values, dtype=torch.float32), len(values)
    kept = min(n, max(1, int(density * n)))
    cut = min(int(gamma * n), n - kept)
    order = sorted(range(n), key=lambda i: (-abs(values[i]), i))
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order[cut : cut + kept]] = True
    assert torch.equal(magnitude_mask(delta, density, gamma), expected)


def test_a_mask_has_the_shape_of_its_tensor():
    assert magnitude_mask(torch.randn(3, 4, 5).mT, 0.5).shape == (3, 5, 4)


def test_among_equal_entries_the_first_row_counts_as_the_larger_however_it_is_stored():
    assert magnitude_mask(torch.ones(2, 3).T.contiguous().T, 0.5).tolist() == [
        [True, True, True],
        [False, False, False],
    ]


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_one_entry_at_least_is_kept(shape):
    assert magnitude_mask(torch.ones(shape), density=0.01, gamma=0.5).sum() == 1


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_a_random_mask_keeps_the_share_that_it_should(density):
    share = key_mask((100_000,), density).double().mean().item()
    assert share == pytest.approx(density, abs=0.01)


def test_density_1_keeps_everything():
    assert key_mask((1000,), 1.0).all()


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "v"}, {"model_key": "1"}])
def test_masks_differ_by_seed_name_and_model(other):
    assert not torch.equal(key_mask(), key_mask(**other))


def test_a_mask_depends_on_nothing_else():
    first = key_mask()
    torch.manual_seed(123)
    key_mask(name="another")
    before = torch.get_rng_state()
    assert torch.equal(first, key_mask())
    assert torch.equal(before, torch.get_rng_state())


def test_names_and_models_are_not_run_together():
    assert not torch.equal(key_mask(name="w1", model_key="0"), key_mask(name="w", model_key="10"))


def test_rescaling_restores_the_expectation_or_the_l1_norm():
    delta = torch.tensor([1.0, -2.0, 3.0])
    pruned = torch.tensor([0.0, -2.0, 0.0])
    assert rescaled(pruned, delta, 0.25, "density").tolist() == [0, -8, 0]
    assert rescaled(pruned, delta, 0.25, "l1").tolist() == [0, -6, 0]
    assert rescaled(pruned, delta, 0.25, "none").tolist() == [0, -2, 0]


def test_nothing_left_stays_nothing_under_l1():
    assert rescaled(torch.zeros(2), torch.ones(2), 0.5, "l1").tolist() == [0, 0]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    for mask in (lambda: magnitude_mask(torch.ones(3), density), lambda: key_mask((3,), density)):
        with pytest.raises(ValueError, match=r"density=.* must lie in \(0, 1\]"):
            mask()


@pytest.mark.parametrize("gamma", [1.0, -0.1, float("nan")])
def test_a_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma=.* must lie in \[0, 1\)"):
        magnitude_mask(torch.ones(3), 0.5, gamma)


def test_density_and_gamma_above_1_together_are_refused():
    assert magnitude_mask(torch.ones(10), 0.7, 0.3).sum() == 7
    with pytest.raises(ValueError, match=r"density=0.7 and gamma=0.4 must not exceed 1"):
        magnitude_mask(torch.ones(3), 0.7, 0.4)
