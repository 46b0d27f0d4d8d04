import copy
import threading

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning.callbacks._trainer.own_weights import (
    refuse_copies_of_weights,
    refuse_own_weights,
)
from tests.support.optimizers import (
    Averaging,
    HalfMasters,
    Lookahead,
    Masters,
    Proximal,
    ScheduleFree,
    SharpnessAware,
    StateLookahead,
    Wrapped,
)

TORCHS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if kind not in (torch.optim.Optimizer, torch.optim.SparseAdam)
]


class Writer:
    """Who writes."""


def layers(zero=False, dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).to(dtype)
    if zero:
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
    return net


def stepped(optimizer, net, steps=3):
    def closure():
        optimizer.zero_grad()
        loss = (net(torch.ones(4, 6).to(net[0].weight)) - 1).square().mean()
        loss.backward()
        return loss

    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(steps):
        closure()
        optimizer.step(closure)


def checked(optimizer, net, forgets=False):
    refuse_own_weights([optimizer], Writer(), forgets)
    torch.manual_seed(1)
    stepped(optimizer, net)
    refuse_copies_of_weights([optimizer], dict(net.named_parameters()), Writer(), forgets)


OWN = {
    "masters": lambda p: Masters(p, lr=0.1),
    "schedule-free": ScheduleFree,
    "lookahead": lambda p: Lookahead(torch.optim.Adam(p)),
    "lookahead in the state": StateLookahead,
    "wrapped": lambda p: Wrapped(p, torch.optim.SGD, lr=0.1),
}


@pytest.mark.parametrize("kind", OWN)
def test_an_optimizer_that_keeps_weights_of_its_own_is_refused_by_name(kind):
    net = layers()
    optimizer = OWN[kind](list(net.parameters()))
    name = type(optimizer).__name__
    with pytest.raises(MisconfigurationException, match=f"Writer writes .*{name} keeps weights"):
        checked(optimizer, net)


@pytest.mark.parametrize("kind", ["masters", "schedule-free", "lookahead in the state"])
def test_it_is_refused_before_its_first_step_where_another_can_be_made(kind):
    with pytest.raises(MisconfigurationException, match=r"of a change to a weight \d+% was left"):
        refuse_own_weights([OWN[kind](list(layers().parameters()))], Writer())


def test_copies_that_are_kept_in_half_precision_alone_are_found_there_alone():
    whole, half = layers(), layers(dtype=torch.bfloat16)
    refuse_own_weights([HalfMasters(whole.parameters(), lr=0.1)], Writer())
    with pytest.raises(MisconfigurationException, match="HalfMasters keeps weights"):
        refuse_own_weights([HalfMasters(half.parameters(), lr=0.1)], Writer())


def test_where_forgetting_the_state_lets_the_weights_count_that_is_enough():
    net = layers()
    with pytest.raises(MisconfigurationException, match="or optimizer_state='reset'"):
        checked(Masters(net.parameters(), lr=0.1), net)
    checked(Masters(net.parameters(), lr=0.1), net, forgets=True)


HONEST = {
    "a mean and the last weights": Averaging,
    "the weights at its start": Proximal,
    "weights within a step": lambda p: SharpnessAware(p, lr=0.1),
}


@pytest.mark.parametrize("kind", HONEST)
def test_copies_that_do_not_overwrite_the_weights_are_no_reason_to_refuse(kind):
    net = layers()
    checked(HONEST[kind](list(net.parameters())), net)


@pytest.mark.parametrize("zero", [False, True], ids=["drawn", "zero"])
@pytest.mark.parametrize("lr", [1e-3, 10.0])
@pytest.mark.parametrize("kind", TORCHS, ids=lambda kind: kind.__name__)
def test_no_optimizer_of_torch_is_refused_nor_a_subclass(kind, lr, zero):
    own = type("Own", (kind,), {"__module__": __name__})
    for each in (kind, own):
        net = layers(zero)
        parameters = [p for p in net.parameters() if kind.__name__ != "Muon" or p.ndim == 2]
        checked(each(parameters, lr=lr), net)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
        {"foreach": True},
        {"fused": True},
        {"differentiable": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_nor_with_any_option(options):
    own = type("Own", (torch.optim.SGD,), {"__module__": __name__})
    for zero in (False, True):
        net = layers(zero)
        optimizer = own(net.parameters(), lr=0.1, **options)
        refuse_own_weights([optimizer], Writer())
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        if "differentiable" not in options:
            optimizer.step()
        refuse_copies_of_weights([optimizer], dict(net.named_parameters()), Writer(), False)


def test_the_optimizer_and_its_weights_are_as_before():
    net = layers()
    optimizer = Averaging(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    stepped(optimizer, net)
    before, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    rng, called = torch.get_rng_state(), scheduler.last_epoch
    refuse_own_weights([optimizer], Writer())
    refuse_copies_of_weights([optimizer], dict(net.named_parameters()), Writer(), False)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert scheduler.last_epoch == called


def test_an_optimizer_with_copies_that_cannot_be_tried_is_refused():
    class Locked(Lookahead):
        def __init__(self, base_optimizer):
            super().__init__(base_optimizer)
            self.lock = threading.Lock()  # cannot be copied

    net = layers()
    optimizer = Locked(torch.optim.Adam(net.parameters()))
    with pytest.raises(MisconfigurationException, match="slow is near, and trying"):
        checked(optimizer, net)
