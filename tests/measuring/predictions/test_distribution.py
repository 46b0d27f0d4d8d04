import math

import pytest
import torch
from torch import distributions

from recall_lightning.measuring.predictions import FoundPredictions, Gaussian
from recall_lightning.measuring.predictions.distribution import OfDistribution


def poisson(outputs):
    return distributions.Poisson(outputs.exp())


def test_gradients_have_the_second_moments_of_the_fisher_information():
    """E[gg] of a Poisson distribution is its rate, with regard to the logarithm of that."""
    torch.manual_seed(0)
    outputs = torch.full((40_000, 1), 0.7, requires_grad=True)
    (gradient,) = torch.autograd.grad(OfDistribution(poisson).sampled_loss(outputs).sum(), outputs)
    assert gradient.square().mean().item() == pytest.approx(math.exp(0.7), rel=0.03)


def test_a_distribution_over_all_parameters_is_one_prediction():
    outputs = torch.randn(4, 5, 3)
    found = OfDistribution(lambda o: distributions.Categorical(logits=o)).sampled_loss(outputs)
    assert found.shape == (4, 5)


def test_the_divergence_is_torchs_summed_over_values():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = distributions.kl_divergence(poisson(teacher / 2), poisson(student / 2)).sum(-1) * 4
    torch.testing.assert_close(OfDistribution(poisson).divergence(student, teacher, 2.0), expected)


def test_a_function_can_be_set_as_predictions_and_a_class_of_them_too():
    found = FoundPredictions(poisson)
    assert found.of(torch.zeros(4, 1), []).of_outputs is poisson
    assert isinstance(FoundPredictions(Gaussian).kind, Gaussian)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda o: o, r"returned Tensor for outputs of shape \(4, 3\)"),
        (lambda o: distributions.Normal(o.sum(), 1.0), "must begin with those axes"),
    ],
)
def test_a_function_that_gives_no_distribution_of_the_predictions_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        OfDistribution(function).sampled_loss(torch.zeros(4, 3))


def test_a_divergence_that_torch_does_not_know_is_refused():
    kind = OfDistribution(lambda o: distributions.StudentT(3.0, o))
    with pytest.raises(ValueError, match="torch knows no divergence"):
        kind.divergence(torch.zeros(4, 3), torch.zeros(4, 3))
