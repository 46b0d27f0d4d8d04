import pytest
import torch
from sklearn.linear_model import Ridge

from recall_lightning.merging.moved_inputs import MovedInputs

WIDTH = 64
CLASSES = torch.arange(48) % 3


def drawn(number, seed=0, mean=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, WIDTH, generator=generator) + mean


BEFORE = drawn(48, 1)
AFTER = 1.5 * BEFORE


def ridge(before, after):
    """scikit-learn's, as strong as of all 48."""
    fitted = Ridge(alpha=10 * float(BEFORE.square().sum()) / WIDTH, fit_intercept=False)
    return fitted.fit(before.numpy(), (after - before).numpy())


def predicted(by, inputs):
    return torch.from_numpy(by.predict(inputs.numpy()))


def test_what_moves_all_classes_alike_moves_others_as_ridge_regression_has_it():
    inputs = drawn(20)
    found = MovedInputs(inputs, BEFORE, CLASSES).by(AFTER)
    assert torch.allclose(found, inputs + predicted(ridge(BEFORE, AFTER), inputs), atol=1e-4)


def test_it_counts_as_far_as_classes_that_were_left_out_go_that_way():
    inputs, after = drawn(20), BEFORE + drawn(3, 2, mean=0.1)[CLASSES]
    foretold = torch.zeros_like(BEFORE)
    for own in (CLASSES == 0, CLASSES == 1, CLASSES == 2):
        foretold[own] = predicted(ridge(BEFORE[~own], after[~own]), BEFORE[own])
    common = float((foretold * (after - BEFORE)).sum() / foretold.square().sum())
    assert 0 < common < 0.9
    expected = inputs + common * predicted(ridge(BEFORE, after), inputs)
    assert torch.allclose(MovedInputs(inputs, BEFORE, CLASSES).by(after), expected, atol=1e-4)


@pytest.mark.parametrize(("classes", "after"), [(torch.zeros(48).long(), AFTER), (CLASSES, BEFORE)])
def test_where_nothing_moves_or_one_class_alone_does_the_inputs_stay(classes, after):
    assert torch.equal(MovedInputs(drawn(5), BEFORE, classes).by(after), drawn(5))


def test_of_inputs_of_zero_or_none_nothing_is_foretold():
    for before in (torch.zeros_like(BEFORE), BEFORE[:0]):
        found = MovedInputs(drawn(5), before, CLASSES[: len(before)]).by(before + 1.0)
        assert torch.equal(found, drawn(5))


def test_many_inputs_tell_what_some_of_them_do():
    inputs, before = drawn(20), drawn(5000, 1)
    found = MovedInputs(inputs, before, torch.arange(5000) % 3).by(1.5 * before)
    assert (found - 1.5 * inputs).norm() < 0.75 * (0.5 * inputs).norm()
