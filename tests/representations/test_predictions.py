import pytest
import torch
from torch.nn import functional

from recall_lightning.representations.predictions import logits_of, sampled_loss

LABELS = torch.tensor([0, 1, 2, 0])


def logits(*shape):
    return torch.randn(*shape, requires_grad=True)


def test_labels_are_drawn_from_the_models_own_predictions():
    outputs = torch.tensor([[0.0, 30.0, 0.0]] * 4, requires_grad=True)
    loss, count = sampled_loss(outputs, LABELS)
    assert count == 4
    torch.testing.assert_close(loss, 4 * functional.cross_entropy(outputs[:1], torch.tensor([1])))


def test_gradients_have_the_second_moments_of_the_fisher_information():
    """E[ggᵀ] = diag(p) − ppᵀ at the logits of a softmax."""
    torch.manual_seed(0)
    one = torch.tensor([0.5, -1.0, 0.2])
    outputs = one.repeat(20_000, 1).requires_grad_()
    loss, count = sampled_loss(outputs, torch.zeros(20_000, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, outputs)
    p = one.softmax(-1)
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(gradient.T @ gradient / count, expected, atol=0.01, rtol=0.05)


@pytest.mark.parametrize("shape", [(4, 2), (4, 1), (4,)])
def test_floating_point_targets_mean_a_squared_error(shape):
    torch.manual_seed(0)
    outputs = logits(*shape)
    draws = []
    for _ in range(2000):
        loss, count = sampled_loss(outputs, (torch.ones(4, 7), torch.zeros(shape)))
        draws.append(torch.autograd.grad(loss, outputs)[0].square().mean())
    assert count == 4
    assert float(torch.stack(draws).mean()) == pytest.approx(1.0, abs=0.05)


def test_hidden_and_unlabelled_tokens_do_not_count():
    outputs = logits(1, 4, 5)
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, 2, 3, -100]]),
    }
    loss, count = sampled_loss({"logits": outputs}, batch, causal=True)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert count == 2
    assert gradient[0].abs().sum(-1).gt(0).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "targets",
    [
        (),
        (torch.zeros(4, 8),),
        (torch.tensor([0, 1, 2, 3]),),
        (torch.tensor([True, False, True, False]),),
        (torch.zeros(3, dtype=torch.long),),
    ],
    ids=["none", "other floats", "a class too many", "booleans", "another number"],
)
def test_what_the_batch_does_not_tell_is_not_guessed(targets):
    assert sampled_loss(logits(4, 3), (torch.zeros(4, 8), *targets)) is None


def test_outputs_without_gradient_tell_nothing():
    assert sampled_loss(torch.randn(4, 3), LABELS) is None


def test_outputs_that_are_not_finite_give_a_loss_that_is_not():
    outputs = torch.full((4, 3), torch.nan, requires_grad=True)
    loss, _ = sampled_loss(outputs, LABELS)
    assert not bool(loss.isfinite())


def test_logits_are_a_tensor_of_rows_or_named():
    rows = torch.zeros(2, 3)
    assert logits_of(rows) is rows
    assert logits_of({"logits": rows}) is rows
    assert logits_of({"loss": torch.tensor(1.0)}) is None
