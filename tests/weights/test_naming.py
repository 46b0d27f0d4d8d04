import torch
from torch import nn

from recall_lightning.weights.naming import canonical_name, named_weights


def test_a_tied_weight_is_named_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(named_weights(model)) == ["0.weight", "0.bias", "1.bias"]


def test_frozen_and_integer_tensors_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    assert list(named_weights(model)) == [
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    ]


def test_names_are_the_same_with_and_without_torch_compile():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    names = list(named_weights(model))
    model[0] = torch.compile(model[0], backend="eager")
    assert list(named_weights(model)) == names
    assert canonical_name("module.a._orig_mod.b") == "module.a.b"
