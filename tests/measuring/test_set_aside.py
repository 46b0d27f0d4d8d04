import copy
import itertools
import random
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache

from recall_lightning.measuring import set_aside as module_under_test
from recall_lightning.measuring.set_aside import set_aside

Pair = namedtuple("Pair", "h c")


@dataclass
class State:
    h: torch.Tensor = field(default_factory=lambda: torch.zeros(2))
    steps: int = 0


@dataclass(slots=True)
class Slotted:
    h: torch.Tensor
    steps: int = 0


class Holder(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held


def grow(cache):
    cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), layer_idx=0)


def step(state):
    state.h += 1
    state.steps += 1


def own_statistics(models):
    return models[0](torch.randn(8, 2))


WRITTEN = {
    "tensor": (lambda: torch.zeros(2), lambda held: held.add_(1)),
    "tensor's data": (lambda: torch.zeros(2), lambda held: held.data.add_(1)),
    "array": (lambda: np.zeros(2), lambda held: held.__iadd__(1)),
    "list": (list, lambda held: held.append(1)),
    "tensor in a list": (lambda: [torch.zeros(2)], lambda held: held[0].add_(1)),
    "dict": (lambda: {"a": 1}, lambda held: held.update(a=2, b=3)),
    "dict that loses": (lambda: {"a": 1, "b": 2}, lambda held: held.pop("a")),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda held: held.move_to_end("a")),
    "default dict": (lambda: defaultdict(list), lambda held: held["new"].append(1)),
    "dict's tensor": (lambda: {"a": {"b": torch.zeros(2)}}, lambda held: held["a"]["b"].add_(1)),
    "counter": (lambda: Counter("aab"), lambda held: held.update("a")),
    "user dict": (lambda: UserDict(a=1), lambda held: held.update(a=2)),
    "set": (lambda: {1}, lambda held: held.add(2)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda held: held.append(3)),
    "named tuple": (lambda: Pair(torch.zeros(2), 1), lambda held: held.h.add_(1)),
    "namespace": (lambda: SimpleNamespace(n=1), lambda held: setattr(held, "n", 2)),
    "dataclass": (State, step),
    "dataclass with slots": (lambda: Slotted(torch.zeros(2)), step),
    "cache": (DynamicCache, grow),
    "module in a list": (lambda: [nn.BatchNorm1d(2)], own_statistics),
    "long list": (lambda: [0] * 5000, lambda held: held.append(1)),
}  # fmt: skip


def seen(value):
    """Everything that a value holds, as plain Python."""
    if isinstance(value, nn.Module):
        return seen(dict(value.named_buffers()))
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict | UserDict):
        return [(key, seen(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple | set | deque):
        return [seen(entry) for entry in value]
    if isinstance(value, DynamicCache):
        return value.get_seq_length()
    if isinstance(value, Slotted):
        return [seen(value.h), value.steps]
    return seen(vars(value)) if hasattr(value, "__dict__") else value


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_a_forward_writes_is_as_it_was(kind):
    make, write = WRITTEN[kind]
    held = make()
    model = nn.Sequential(Holder(held))
    before = copy.deepcopy(seen(held))
    with set_aside(model):
        write(model[0].held)
        assert seen(model[0].held) != before
    assert model[0].held is held
    assert seen(held) == before


@pytest.mark.parametrize("value", [3, None, "text", (1, 2), torch.ones(2), [1]])
def test_what_is_replaced_or_new_is_as_it_was(value):
    model = Holder(0)
    model.register_buffer("kept", torch.zeros(2))
    kept = model.kept
    with set_aside(model):
        model.held, model.new, model.kept = value, value, torch.ones(2)
        model.register_buffer("made", torch.ones(1), persistent=False)
    assert model.held == 0
    assert not hasattr(model, "new")
    assert model.kept is kept
    assert list(model.state_dict()) == ["kept"]
    assert model._non_persistent_buffers_set == set()


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda own: torch.rand(3, generator=own).tolist()),
        (np.random.default_rng(0), lambda own: own.random(3).tolist()),
        (np.random.RandomState(0), lambda own: own.rand(3).tolist()),
        (random.Random(0), lambda own: own.random()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_random_generators_of_a_modules_own_are_put_back(generator, draw):
    model = Holder(generator)
    with set_aside(model):
        first = draw(model.held)
    assert draw(model.held) == first


def test_what_two_hold_together_they_hold_together_meanwhile():
    shared = torch.zeros(2)
    model = nn.Sequential(Holder(shared), Holder([shared]))
    with set_aside(model):
        model[0].held.add_(1)
        assert model[1].held[0].tolist() == [1, 1]
    assert model[1].held[0] is model[0].held is shared


def test_who_holds_a_list_under_another_name_sees_it_put_back_too():
    calls = []
    model = Holder(calls)
    with set_aside(model):
        calls.append("from a hook")
    assert calls == []


def test_a_structure_may_hold_itself_and_its_module():
    held = []
    model = Holder(held)
    held += [held, model]
    with set_aside(model):
        held.append(1)
    assert len(held) == 2


def test_children_hooks_and_parameters_are_those_that_were():
    model = nn.Sequential(nn.Linear(2, 2))
    layer, weight = model[0], model[0].weight
    with set_aside(model):
        model[0] = nn.Identity()
        layer.weight = nn.Parameter(torch.zeros(2, 2))
        layer.register_forward_hook(lambda *_: None)
        model.add_module("new", nn.ReLU())
    assert list(model) == [layer]
    assert layer.weight is weight
    assert not layer._forward_hooks


def test_buffers_of_a_scripted_module_are_copied_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count += 1
            return x

    model = nn.Sequential(torch.jit.script(Counts()))
    with set_aside(model):
        model(torch.ones(1))
        assert float(model[0].count) == 1
    assert float(model[0].count) == 0


def test_a_graph_that_waits_for_its_backward_is_none_the_wiser():
    model = nn.BatchNorm1d(2)
    model.held = torch.ones(2)
    loss = (model(torch.randn(8, 2)) * model.held * model.running_var).square().sum()
    with set_aside(model):
        model(torch.randn(8, 2))
        model.held.add_(1)
    loss.backward()


def test_what_is_too_large_to_copy_is_watched(monkeypatch):
    monkeypatch.setattr(module_under_test, "_LARGE", 4)
    model = Holder(None)
    model.register_buffer("codes", torch.zeros(4, dtype=torch.int32))
    with set_aside(model):
        pass
    with pytest.warns(UserWarning, match="wrote into codes, too large"), set_aside(model):
        model.codes += 1


def test_objects_of_frameworks_and_functions_are_left_alone():
    data = torch.utils.data.TensorDataset(torch.zeros(2))
    held = [data, itertools.count(), len, State, lambda: None]
    model = Holder(held)
    with set_aside(model):
        assert all(one is other for one, other in zip(model.held, held, strict=True))
        assert model.held[0].tensors is data.tensors
