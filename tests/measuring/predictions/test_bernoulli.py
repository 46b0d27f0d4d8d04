import pytest
import torch
from torch.distributions import Bernoulli as Distribution
from torch.distributions import kl_divergence

from recall_lightning.measuring.predictions import Bernoulli


def test_gradients_have_the_second_moments_of_the_fisher_information():
    """E[ggᵀ] = diag(p (1 − p)) at the logits of independent units."""
    torch.manual_seed(0)
    one = torch.tensor([2.0, -1.0, 0.0])
    outputs = one.repeat(20_000, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(Bernoulli().sampled_loss(outputs).sum(), outputs)
    p = one.sigmoid()
    found = gradient.T @ gradient / 20_000
    torch.testing.assert_close(found, torch.diag(p * (1 - p)), atol=0.01, rtol=0.05)


def test_the_loss_is_the_entropy_on_average():
    torch.manual_seed(0)
    outputs = torch.tensor([[2.0, -1.0]]).repeat(20_000, 1)
    expected = Distribution(logits=outputs[0]).entropy().sum()
    torch.testing.assert_close(
        Bernoulli().sampled_loss(outputs).mean(), expected, atol=0.02, rtol=0
    )


def test_outputs_that_are_not_finite_give_a_loss_that_is_not():
    assert not Bernoulli().sampled_loss(torch.full((4, 3), torch.nan)).isfinite().any()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_summed_over_units(temperature):
    student, teacher = torch.randn(5, 3), 2 * torch.randn(5, 3)
    old, new = (Distribution(logits=logits / temperature) for logits in (teacher, student))
    expected = temperature**2 * kl_divergence(old, new).sum(-1)
    found = Bernoulli().divergence(student, teacher, temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_divergence_is_finite_where_probabilities_round_to_0_or_1():
    certain = torch.tensor([[200.0, -200.0]])
    assert Bernoulli().divergence(-certain, certain).item() == pytest.approx(400.0)
    assert Bernoulli().divergence(certain, certain).item() == 0


def test_its_gradient_is_the_difference_of_probabilities():
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    Bernoulli().divergence(student, teacher, 2.0).sum().backward()
    expected = 2.0 * ((student / 2).sigmoid() - (teacher / 2).sigmoid())
    torch.testing.assert_close(student.grad, expected.detach())
