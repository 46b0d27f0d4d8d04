import pytest
import torch
from torch import nn

from recall_lightning.weights.naming import canonical_name, named_weights
from recall_lightning.weights.snapshot import Snapshot


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


def test_a_snapshot_does_not_follow_the_live_weights():
    model = nn.Linear(2, 2)
    snapshot = Snapshot.take(model)
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(snapshot["weight"], before)
    assert snapshot.nbytes == 6 * 4


def test_applied_snapshot_computes_with_the_old_weights_and_leaves_bit_for_bit():
    model, inputs = nn.Linear(4, 4), torch.randn(3, 4)
    snapshot, then = Snapshot.take(model), model(inputs)
    nn.init.normal_(model.weight)
    now = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), snapshot.applied_to(model):  # noqa: PT012
        assert torch.equal(model(inputs), then)
        raise RuntimeError("stop")
    assert torch.equal(model.weight, now)


def test_a_model_that_changed_is_named_in_the_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    snapshot = Snapshot.take(model)
    model[0] = nn.Linear(2, 5)
    with pytest.raises(ValueError, match=r"0\.weight \(\(2, 2\) then, \(5, 2\) now\)"):
        snapshot.check_matches(named_weights(model))
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.weight \(gone or frozen\)"):
        snapshot.check_matches(named_weights(model))


def test_non_finite_weights_and_empty_models_are_refused():
    model = nn.Linear(2, 2)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(ValueError, match="'bias' holds NaN"):
        Snapshot.take(model)
    with pytest.raises(ValueError, match="no trainable"):
        Snapshot.take(nn.ReLU())
