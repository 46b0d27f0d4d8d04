"""What was trained between a copy and a boundary comes on top of what the boundary made."""

import pytest
import torch
from torch import nn

from recall_lightning.recall.drift.earlier_weights import EarlierWeights
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain


def trained(model, amount):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(amount)


@pytest.fixture
def model():
    return Plain(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def test_going_back_gives_the_copy_bit_for_bit(model):
    earlier, before = EarlierWeights(), weights_of(model)
    earlier.copy(model, 1)
    trained(model, 0.1)
    earlier.go_back(model)
    assert same(before, weights_of(model))


def test_a_later_copy_takes_the_place_of_the_first(model):
    earlier = EarlierWeights()
    earlier.copy(model, 1)
    trained(model, 0.5)
    earlier.copy(model, 1)
    before = weights_of(model)
    trained(model, 0.1)
    earlier.go_back(model)
    assert same(before, weights_of(model))


def test_what_was_trained_since_comes_on_top(model):
    earlier = EarlierWeights()
    earlier.copy(model, 1)
    trained(model, 0.25)
    earlier.go_back(model)
    trained(model, 2.0)  # as a merge does
    merged = weights_of(model)
    earlier.go_on(model)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, merged[name] + 0.25)


def test_running_variances_stay_those_of_the_copy(model):
    earlier = EarlierWeights()
    model.net[1].running_var.fill_(5.0)
    earlier.copy(model, 1)
    model.net[1].running_var.fill_(0.1)
    earlier.go_back(model)
    model.net[1].running_var.fill_(1.0)
    earlier.go_on(model)
    assert torch.equal(model.net[1].running_var, torch.ones(4))


def test_a_weight_that_has_grown_meanwhile_is_left_as_it_is(model):
    earlier = EarlierWeights()
    earlier.copy(model, 1)
    trained(model, 0.25)
    earlier.go_back(model)
    model.net[2] = nn.Linear(4, 3)
    grown = model.net[2].weight.detach().clone()
    earlier.go_on(model)
    assert torch.equal(model.net[2].weight, grown)


def test_a_checkpoint_between_holds_what_is_to_come(model):
    earlier = EarlierWeights()
    earlier.copy(model, 1)
    trained(model, 0.25)
    earlier.go_back(model)
    other, restored = Plain(model.net), EarlierWeights()
    restored.load_state_dict(earlier.state_dict())
    restored.resume(other)
    before = weights_of(other)
    restored.go_on(other)
    torch.testing.assert_close(other.net[0].weight, before["net.0.weight"] + 0.25)
