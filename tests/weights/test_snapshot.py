import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot


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


class Tied(nn.Module):
    """Two parameters over one memory."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.transposed = nn.Parameter(self.weight.data.T)

    def forward(self, inputs):
        return inputs @ self.weight @ self.transposed


class ItsRowsAsBuffer(nn.Linear):
    """A buffer over part of a parameter's memory."""

    def __init__(self):
        super().__init__(3, 3, bias=False)
        self.register_buffer("rows", self.weight.data[:2])

    def forward(self, inputs):
        return super().forward(inputs) @ self.rows.T


@pytest.mark.parametrize("make", [Tied, ItsRowsAsBuffer, lambda: nn.Linear(3, 3)])
def test_memory_that_others_see_has_the_old_weights_too(make):
    module, inputs = make(), torch.randn(4, 3)
    snapshot, then = Snapshot.take(module), module(inputs)
    with torch.no_grad():
        module.weight.mul_(2)
    memory = [p.data_ptr() for p in module.parameters()]
    with snapshot.applied_to(module):
        assert module(inputs).equal(then)
    assert not module(inputs).equal(then)
    assert [p.data_ptr() for p in module.parameters()] == memory


def test_weights_make_way_for_their_copies_so_that_nothing_is_copied():
    layer = nn.Linear(2, 2)
    snapshot = Snapshot.take(layer)
    with snapshot.applied_to(layer):
        assert layer.weight.data_ptr() == snapshot["weight"].data_ptr()
    assert layer.weight.data_ptr() != snapshot["weight"].data_ptr()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.BatchNorm1d(3), torch.randn(4, 3)),
        (lambda: nn.Embedding(4, 3, max_norm=0.1), torch.arange(4)),
    ],
    ids=["running statistics", "max_norm"],
)
def test_a_forward_that_writes_into_weights_leaves_the_copies_alone(make, inputs):
    module = make()
    snapshot = Snapshot.take(module)
    before = {name: copy.clone() for name, copy in snapshot.items()}
    with snapshot.applied_to(module):
        module(inputs)
    assert all(snapshot[name].equal(before[name]) for name in before)


def test_a_model_that_changed_is_named_in_the_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    snapshot = Snapshot.take(model)
    model[0] = nn.Linear(2, 5)
    with pytest.raises(ValueError, match=r"0\.weight \(\(2, 2\) then, \(5, 2\) now\)"):
        snapshot.check_shapes(named_weights(model))
    with pytest.raises(ValueError, match=r"all of its weights, 0\.weight first, are gone"):
        snapshot.check_shapes({})


def test_a_model_computes_with_copies_of_frozen_weights_and_its_own_where_a_name_is_gone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    snapshot = Snapshot.take(model)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model[0].requires_grad_(False)
    prune.identity(model[1], "weight")
    with snapshot.applied_to(model):
        assert torch.equal(model[0].weight, snapshot["0.weight"])
        assert torch.equal(model[1].bias, snapshot["1.bias"])
        assert (model[1].weight_orig == 1).all()
    assert all((parameter == 1).all() for parameter in model.parameters())


def test_non_finite_weights_and_empty_models_are_refused():
    model = nn.Linear(2, 2)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(ValueError, match="'bias' holds NaN"):
        Snapshot.take(model)
    with pytest.raises(ValueError, match="needs a trainable"):
        Snapshot.take(nn.ReLU())
