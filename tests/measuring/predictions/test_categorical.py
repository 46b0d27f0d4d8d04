import math

import pytest
import torch
from torch.nn import functional

from recall_lightning.measuring.predictions import Categorical


def gradient_of(loss, outputs):
    return torch.autograd.grad(loss.sum(), outputs)[0]


def test_labels_are_drawn_from_the_models_own_predictions():
    outputs = torch.tensor([[0.0, 30.0, 0.0]] * 4, requires_grad=True)
    expected = functional.cross_entropy(outputs[:1], torch.tensor([1]))
    torch.testing.assert_close(Categorical().sampled_loss(outputs), expected.expand(4))


def test_gradients_have_the_second_moments_of_the_fisher_information():
    """E[ggᵀ] = diag(p) − ppᵀ at the logits of a softmax."""
    torch.manual_seed(0)
    one = torch.tensor([0.5, -1.0, 0.2])
    outputs = one.repeat(20_000, 1).requires_grad_()
    gradient = gradient_of(Categorical().sampled_loss(outputs), outputs)
    p = one.softmax(-1)
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(gradient.T @ gradient / 20_000, expected, atol=0.01, rtol=0.05)


def test_every_token_has_a_loss_of_its_own():
    outputs = torch.randn(2, 5, 3, requires_grad=True)
    each = Categorical().sampled_loss(outputs)
    assert each.shape == (2, 5)
    (gradient,) = torch.autograd.grad(each[1, 2], outputs)
    assert gradient.abs().sum(-1).nonzero().tolist() == [[1, 2]]


def test_outputs_that_are_not_finite_give_a_loss_that_is_not():
    assert not Categorical().sampled_loss(torch.full((4, 3), torch.nan)).isfinite().any()


def by_hand(student, teacher, temperature):
    """Σ_c p_c (ln p_c − ln q_c) · T², p of the teacher, q of the student."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(x / temperature) for x in s]
        p = [math.exp(x / temperature) for x in t]
        pairs = [(x / sum(p), y / sum(q)) for x, y in zip(p, q, strict=True)]
        total += sum(x * (math.log(x) - math.log(y)) for x, y in pairs)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_that_of_the_student_from_the_teacher(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), 3 * torch.randn(4, 3)
    value = Categorical().divergence(student, teacher, temperature).mean().item()
    assert value == pytest.approx(by_hand(student, teacher, temperature), rel=1e-4)
    assert value != pytest.approx(by_hand(teacher, student, temperature), rel=1e-2)


def test_its_gradient_is_that_of_cross_entropy_with_the_teachers_probabilities():
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    gradient = gradient_of(Categorical().divergence(student, teacher, 2.0), student)
    expected = 2.0 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))
    torch.testing.assert_close(gradient, expected.detach())


def test_one_class_is_none():
    one = torch.zeros(4, 1)
    for method in (Categorical().sampled_loss, lambda o: Categorical().divergence(o, o)):
        with pytest.raises(ValueError, match=r"\(4, 1\) have one class only: use 'binary' or 'val"):
            method(one)
