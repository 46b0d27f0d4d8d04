import pytest
import torch
from torch import nn
from torch.nn import functional

from recall_lightning.measuring.predictions.loss import LossEvidence, evidence_in

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
X, Y, T = torch.randn(6, 5), torch.randint(0, 3, (6,)), torch.rand(6, 3)


def told(loss_of, net=NET):
    outputs = net(X)
    found = evidence_in(loss_of(outputs), [outputs])
    return found and found.kind


def square(numbers):
    return numbers * numbers


@pytest.mark.parametrize(
    ("loss_of", "kind"),
    [
        (lambda o: functional.cross_entropy(o, Y), "classes"),
        (lambda o: functional.cross_entropy(o, Y, torch.ones(3), label_smoothing=0.1), "classes"),
        (lambda o: functional.cross_entropy(o, T.softmax(-1)), "classes"),
        (lambda o: -(T * o.log_softmax(-1)).sum(1).mean(), "classes"),
        (lambda o: -o.log_softmax(-1).gather(1, Y[:, None]).mean(), "classes"),
        (lambda o: functional.cross_entropy(o.view(3, 2, 3).flatten(0, 1), Y) * 2.0**16, "classes"),
        (lambda o: functional.binary_cross_entropy_with_logits(o, T), "binary"),
        (lambda o: functional.binary_cross_entropy(o.sigmoid(), T), "binary"),
        (lambda o: functional.mse_loss(o, T), "values"),
        (lambda o: ((o - T) ** 2).sum(1).mean() / 2, "values"),
        (lambda o: square(T - o).mean(), "values"),
        (lambda o: functional.l1_loss(o, T), "values"),
        (lambda o: functional.huber_loss(o, T), "values"),
    ],
)
def test_a_loss_tells_how_it_takes_outputs(loss_of, kind):
    assert told(loss_of) == kind


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda o: functional.cross_entropy(o, Y) + functional.mse_loss(o, T),
        lambda o: functional.multi_margin_loss(o, Y),
        lambda o: o.exp().sum(),
        lambda o: functional.mse_loss(NET[2](NET[0](X).tanh()), T),  # of other outputs
        lambda o: torch.tensor(0.0, requires_grad=True),
        lambda o: torch.tensor(0.0),
    ],
    ids=["two kinds", "margins", "another", "other outputs", "a leaf", "no graph"],
)
def test_what_it_does_not_tell_is_not_guessed(loss_of):
    assert told(loss_of) is None


def test_penalties_and_auxiliary_losses_that_are_not_of_outputs_do_not_confuse_it():
    def with_penalty(outputs):
        penalty = sum(((p - 1) ** 2).sum() for p in NET.parameters())
        return functional.cross_entropy(outputs, Y) + 0.1 * penalty + NET[0](X).square().mean()

    assert told(with_penalty) == "classes"


def test_a_critics_loss_is_not_the_generators():
    """Between a loss and outputs that another network reads lie that network's operations."""
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).requires_grad_(False)
    ones = torch.ones(6, 1)
    assert told(lambda o: functional.binary_cross_entropy_with_logits(critic(o), ones)) is None


def test_probabilities_are_told_from_logits():
    p = NET(X).softmax(-1)
    assert evidence_in(functional.nll_loss(p.log(), Y), [p]) == LossEvidence("classes", True)
    assert evidence_in(functional.binary_cross_entropy(p, T), [p]) == LossEvidence("binary", True)
    assert not evidence_in(functional.cross_entropy(p, Y), [p]).of_probabilities
    logits = NET(X)
    of_sigmoid = functional.binary_cross_entropy(logits.sigmoid(), T)
    assert not evidence_in(of_sigmoid, [logits]).of_probabilities


def test_classes_of_pixels_are_the_second_axis_unless_they_were_moved():
    images = nn.Conv2d(1, 3, 3, padding=1)(torch.randn(2, 1, 6, 6))
    labels = torch.randint(0, 3, (2, 6, 6))
    assert evidence_in(functional.cross_entropy(images, labels), [images]).classes_second
    moved = functional.cross_entropy(images.permute(0, 2, 3, 1).reshape(-1, 3), labels.flatten())
    assert evidence_in(moved, [images]) == LossEvidence("classes")


def test_outputs_that_were_reshaped_to_be_looked_at_are_recognised():
    one = NET(X)[:, 0]
    loss = functional.binary_cross_entropy_with_logits(one, T[:, 0])
    assert evidence_in(loss, [one[:, None]]).kind == "binary"
