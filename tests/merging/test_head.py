import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recall_lightning.merging.head import Predicted, fitted_head, spread


def inputs(seed, number=200, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(number, 4, generator=generator)
    labels = (given[:, seed % 4] > 0).long()
    given[:, 3] += shift
    return given, labels


def told(given, labels, classes=4):
    return Predicted(given, torch.nn.functional.one_hot(labels, classes).float())


OLD, NEW = told(*inputs(0)), told(inputs(1, shift=6.0)[0], inputs(1)[1] + 2)


def right(weight, bias, of):
    found = (of.inputs @ weight.T + (0 if bias is None else bias)).argmax(1)
    return float((found == of.probabilities.argmax(1)).float().mean())


def zeros():
    return torch.zeros(4, 4), torch.zeros(4)


def test_it_predicts_what_was_predicted_before_and_what_is_now():
    weight, bias = fitted_head(*zeros(), OLD, NEW, keep=1.0)
    assert right(weight, bias, OLD) > 0.9
    assert right(weight, bias, NEW) > 0.9


@pytest.mark.parametrize(("keep", "of", "other"), [(1e6, OLD, NEW), (0.0, NEW, OLD)])
def test_what_does_not_count_is_not_predicted(keep, of, other):
    weight, bias = fitted_head(*zeros(), OLD, NEW, keep)
    assert right(weight, bias, of) > 0.95
    assert right(weight, bias, other) < 0.05


def test_it_is_the_minimum_that_scikit_learn_finds():
    given, labels = inputs(2)
    new = told(given, labels, classes=2)
    weight, _ = fitted_head(torch.zeros(2, 4), None, new, new, keep=0.5)
    ridge = 1e-4 * float(given.square().sum(1).mean())
    other = LogisticRegression(  # of two classes it has one row, the difference of ours
        C=1 / (ridge * len(given)), fit_intercept=False, tol=1e-10, max_iter=10_000
    ).fit(given.numpy(), labels.numpy())
    difference = (weight[1] - weight[0]).numpy()
    assert np.allclose(difference, other.coef_[0], rtol=2e-3, atol=4e-3)


def test_where_nothing_speaks_the_merged_layer_stays():
    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    silent = Predicted(torch.zeros(8, 4), torch.full((8, 4), 0.25))
    weight, bias = fitted_head(start, torch.zeros(4), silent, silent, keep=1.0)
    assert torch.equal(weight, start)
    assert torch.equal(bias, torch.zeros(4))


def test_what_is_not_finite_leaves_the_merged_layer():
    broken = Predicted(NEW.inputs * torch.nan, NEW.probabilities)
    weight, bias = fitted_head(*zeros(), OLD, broken, keep=1.0)
    assert not weight.any()
    assert not bias.any()


def test_few_inputs_are_spread_around_themselves_as_far_as_their_classes_reach():
    given, labels = inputs(0, number=40)
    many = spread(told(given, labels), 40_000, torch.Generator().manual_seed(0))
    around = (many.inputs - given.repeat(1000, 1)).std(0)
    within = torch.stack([given[labels == one].var(0) for one in (0, 1)]).mean(0)
    expected = 0.5 * ((within + within.mean()) / 2).sqrt()
    assert torch.allclose(around, expected, rtol=0.1)
    assert torch.equal(many.probabilities[:40], told(given, labels).probabilities)
