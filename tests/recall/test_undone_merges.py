import warnings

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.methods.wise_ft import WiseFT
from recall_lightning.recall.undone_merges import UndoneMerges
from tests.support.optimizers import Lookahead, Masters, ScheduleFree, SharpnessAware
from tests.support.training import Plain, loader, quiet_trainer


class SteppedBy(Plain):
    def __init__(self, kind, net=None, **kwargs):
        super().__init__(net)
        self.kind, self.kwargs = kind, kwargs

    def configure_optimizers(self):
        return self.kind(self.parameters(), **self.kwargs)


def half(**kwargs):
    return RecallCallback(every=1, rule=Uniform(0.5), end_rule="never", **kwargs)


@pytest.mark.parametrize(
    "make",
    [half, RecallCallback, SequentialFinetuningAveraging, WiseFT, AdaptiveInterval],
    ids=lambda make: make.__name__,
)
def test_every_method_that_merges_refuses_an_optimizer_with_weights_of_its_own(make):
    model, callback = SteppedBy(Masters, lr=0.1), make()
    with pytest.raises(MisconfigurationException, match="Masters keeps weights of its own"):
        quiet_trainer(callback).fit(model, loader(0))
    assert callback.history == []


def test_one_that_shows_it_by_what_it_holds_is_refused_after_its_first_step():
    class Base(Plain):
        def configure_optimizers(self):
            return Lookahead(super().configure_optimizers())

    callback = half()
    with pytest.raises(MisconfigurationException, match="Lookahead keeps weights"):
        quiet_trainer(callback).fit(Base(), loader(0))
    assert callback.history == []


def test_merges_hold_where_the_state_is_reset():
    def distance(callback):
        torch.manual_seed(0)
        model = SteppedBy(Masters, lr=0.1)
        start = [p.detach().clone() for p in model.parameters()]
        quiet_trainer(*callback, max_epochs=3).fit(model, loader(0))
        pairs = zip(model.parameters(), start, strict=True)
        return sum(float((p - q).detach().square().sum()) for p, q in pairs)

    assert distance([half(optimizer_state="reset")]) < 0.1 * distance([])


def test_a_schedule_free_optimizer_is_tried_at_the_users_own_risk():
    class Trains(SteppedBy):
        def on_train_start(self):
            self.optimizers().optimizer.train()

    callback = half(allow_untested=True)
    quiet_trainer(callback).fit(Trains(ScheduleFree), loader(0))
    assert callback.history


class OwnMasters(Plain):
    """Its optimizer steps the weights, and it writes its own copies into them."""

    def on_fit_start(self):
        self.copies = [p.detach().clone() for p in self.net.parameters()]

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        before = [p.detach().clone() for p in self.net.parameters()]
        optimizer.step(closure)
        with torch.no_grad():
            for p, was, copy in zip(self.net.parameters(), before, self.copies, strict=True):
                p.copy_(copy.add_(p - was))


@pytest.mark.parametrize("every", [2, 20])
def test_what_puts_weights_back_anywhere_is_told_of_and_then_refused(every):
    callback = RecallCallback(every=every, rule=Uniform(0.5), end_rule="never")
    told = pytest.warns(UserWarning, match="put the weights back where they were before")
    with told, pytest.raises(MisconfigurationException, match="so that no merge holds"):
        quiet_trainer(callback, max_epochs=20).fit(OwnMasters(lr=1e-3), loader(0))


ORDINARY = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd in long steps": (torch.optim.SGD, {"lr": 5.0}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.95}),
    "adam": (torch.optim.Adam, {"lr": 1e-2}),
    "adam in long steps": (torch.optim.Adam, {"lr": 1.0}),
    "asgd": (torch.optim.ASGD, {"lr": 0.1, "t0": 0}),
    "rprop": (torch.optim.Rprop, {}),
    "lbfgs": (torch.optim.LBFGS, {"lr": 0.1}),
    "adadelta": (torch.optim.Adadelta, {}),
    "sam": (SharpnessAware, {"lr": 0.1}),
}


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("zero", [False, True], ids=["drawn", "zero"])
@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_optimizers_are_not_taken_for_it(kind, zero, every):
    optimizer, options = ORDINARY[kind]
    net = nn.Linear(8, 2)
    if zero:
        nn.init.zeros_(net.weight)
    callback = RecallCallback(every=every, rule=Uniform(0.5))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*put the weights back.*")
        quiet_trainer(callback, max_epochs=4).fit(SteppedBy(optimizer, net, **options), loader(0))
    assert callback.history


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_steps_that_cancel_a_merge_are_no_undoing(share, every):
    """Where a merge takes back as much as a steady step adds, the next leads back exactly."""
    start, step = torch.randn(1000), 0.01 * torch.randn(1000)
    weight, watch = nn.Parameter(start.clone()), None
    for number in range(1, 60):
        with torch.no_grad():
            weight += step * min(1, number / 20)  # and warms up
        watch = watch or UndoneMerges({"weight": weight})
        watch.observe_step()
        if number % every:
            continue
        with torch.no_grad():
            weight.lerp_(start, share)
        watch.observe_merge()
