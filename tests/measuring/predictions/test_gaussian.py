import pytest
import torch
from torch.distributions import Normal, kl_divergence

from recall_lightning.measuring.predictions import Gaussian


@pytest.mark.parametrize("shape", [(20_000, 2), (4_000, 5, 2)])
def test_gradients_have_the_second_moments_of_the_fisher_information(shape):
    """E[ggᵀ] is the identity at the means of normal distributions of variance 1."""
    torch.manual_seed(0)
    outputs = torch.randn(shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(Gaussian().sampled_loss(outputs).sum(), outputs)
    rows = gradient.reshape(-1, 2)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(2), atol=0.03, rtol=0)


def test_the_loss_is_the_entropy_on_average():
    torch.manual_seed(0)
    loss = Gaussian().sampled_loss(torch.full((20_000, 3), 100.0)).mean()
    expected = 3 * Normal(0.0, 1.0).entropy()
    torch.testing.assert_close(loss, expected, atol=0.03, rtol=0)


def test_the_gradient_is_not_rounded_where_outputs_are_large():
    outputs = torch.full((1000, 1), 1e7, requires_grad=True)
    (gradient,) = torch.autograd.grad(Gaussian().sampled_loss(outputs).sum(), outputs)
    assert len(gradient.unique()) > 900


def test_outputs_that_are_not_finite_give_a_loss_that_is_not():
    assert not Gaussian().sampled_loss(torch.tensor([[torch.nan], [torch.inf]])).isfinite().any()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_half_the_squared_difference_at_any_temperature(temperature):
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(teacher, 1.0), Normal(student, 1.0)).sum(-1)
    torch.testing.assert_close(Gaussian().divergence(student, teacher, temperature), expected)


def test_a_teacher_gets_no_gradient():
    student, teacher = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    Gaussian().divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, -torch.ones(2, 3))
