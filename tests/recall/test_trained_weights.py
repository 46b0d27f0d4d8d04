"""Weights that stop or start being trainable within a task are merged, or left out with a word."""

import warnings

import peft
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning, ModelPruning
from torch import nn
from torch.nn.utils import parametrizations, prune

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.recall.settings import ImportanceSettings
from tests.support.callbacks import FEW, Spy, statistic
from tests.support.training import Plain, loader, quiet_trainer


class All(Spy):
    """Sees every parameter, trainable or not."""

    def look(self, pl_module):
        return {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    def moved(self):
        return {n for n in self.before if not torch.equal(self.before[n], self.after[n])}


class Gan(LightningModule):
    """Toggles its two sides by hand; at a batch's end one is frozen."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 1))

    def forward(self, x):
        return self.g(x)

    def training_step(self, batch, batch_idx):
        g, d = self.optimizers()
        fake = self(torch.randn(8, 8))
        self.d.requires_grad_(True)
        d.zero_grad()
        self.manual_backward(self.d(fake.detach()).exp().mean() - self.d(batch[0]).mean())
        d.step()
        self.d.requires_grad_(False)
        g.zero_grad()
        self.manual_backward(-self.d(fake).mean())
        g.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(side.parameters()) for side in (self.g, self.d)]


class LightningsToggle(Gan):
    """Leaves one side frozen by Lightning's own means."""

    def training_step(self, batch, batch_idx):
        g, d = self.optimizers()
        for optimizer in (g, d):
            if batch_idx or optimizer is d:
                self.untoggle_optimizer(d if optimizer is g else g)
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            fake = self.d(self(torch.randn(8, 8))).exp().mean()
            self.manual_backward(-fake if optimizer is g else fake - self.d(batch[0]).mean())
            optimizer.step()


@pytest.mark.parametrize("kind", [Gan, LightningsToggle])
@pytest.mark.filterwarnings("error:left out")
def test_sides_of_a_gan_are_merged_whichever_is_frozen_at_the_moment(kind):
    module, spy = kind(), All(every=2, rule=Uniform(0.5))
    quiet_trainer(spy).fit(module, loader(0))
    assert spy.moved() == set(dict(module.named_parameters()))
    assert len(spy.history) == 4


@pytest.mark.parametrize("rule", ["importance", "kfac_importance", "rbf"])
def test_every_rule_merges_a_gan_and_learns_the_importance_of_both_sides(rule):
    blocks = {"samples": FEW, "blocks": ["g.*"]} if rule == "rbf" else {}
    callback = RecallCallback(every=2, rule=rule, **blocks)
    quiet_trainer(callback).fit(Gan(), loader(0))
    assert callback.history
    if rule != "rbf":
        assert {"g.0.weight", "d.0.weight"} <= set(statistic(callback, "importance").by_name)


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "fits"])
@pytest.mark.filterwarnings("error:left out")
def test_a_side_that_a_later_task_begins_with_frozen_is_merged_in_it_too(streams):
    module, spy = Gan(), All(every=2, rule=Uniform(0.5), task_epochs=1 if streams else None)
    for _ in range(1 if streams else 2):
        quiet_trainer(spy, max_epochs=2 if streams else 1).fit(module, loader(0))
    assert spy.history[-1]["task"] == 1
    assert spy.moved() == set(dict(module.named_parameters()))
    assert not module.d[0].weight.requires_grad


def test_what_is_frozen_at_a_boundary_is_left_out_of_the_snapshot_without_a_word(recwarn):
    module, callback = Plain(), RecallCallback(every=2, rule=Uniform(0.5))
    quiet_trainer(callback).fit(module, loader(0))
    module.net[0].requires_grad_(False)
    quiet_trainer(callback).fit(module, loader(1))
    assert "net.0.weight" not in callback.snapshots[-1]
    assert not any("left out" in str(warning.message) for warning in recwarn)


class Does(Plain):
    """Does something to its network before the fifth batch."""

    def __init__(self, change, net=None):
        super().__init__(net)
        self.change = change

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 4 and self.current_epoch == 0:
            self.change(self.net)


RULES = {
    "default": {},
    "uniform": {"rule": Uniform(0.5)},
    "rbf": {"rule": "rbf", "samples": FEW},
    "subspace": {"rule": "importance", "end_rule": "subspace"},
    "gradients": {"importance": ImportanceSettings("gradients")},
    "several": {"rule": Uniform(0.2), "snapshots": 2},
    "reset": {"rule": Uniform(0.5), "optimizer_state": "reset"},
    "kept buffers": {"rule": Uniform(0.5), "buffers": "keep"},
}


def freeze(net):
    net[0].requires_grad_(False)


def prune_it(net):
    prune.l1_unstructured(net[0], "weight", amount=0.5)


def parametrise(net):
    parametrizations.weight_norm(net[0])


def add_adapter(net):
    config = peft.LoraConfig(target_modules=["2"], r=2)
    peft.inject_adapter_in_model(config, net)


def take_out(net):
    net[2] = nn.Identity()


CHANGES = {
    freeze: ("net.0.weight, net.0.bias, frozen", {"net.0.weight", "net.0.bias"}),
    prune_it: ("net.0.weight, gone", {"net.0.weight_orig"}),
    take_out: ("net.2.weight, net.2.bias, gone", set()),
    parametrise: ("net.0.weight, gone", {"net.0.parametrizations.weight.original1"}),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_frozen_or_gone_within_a_task_is_left_out_with_a_word(change, rules):
    spy, module = All(every=1, **RULES[rules]), Does(change)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(spy, max_epochs=2).fit(module, loader(0))
    told = [str(w.message) for w in caught if "left out of this task's merges" in str(w.message)]
    message, names = CHANGES[change]
    assert any(message in text for text in told), told
    assert len(told) == len(set(told)) <= 3
    assert spy.history[-1]["step"] == 16
    assert names <= spy.after.keys() - spy.moved()
    assert "net.4.weight" in spy.moved()


def test_an_adapter_that_freezes_the_model_within_a_task_ends_its_merges():
    callback, module = RecallCallback(every=1), Does(add_adapter)
    with pytest.warns(UserWarning, match=r"net\.2\.weight, net\.2\.bias, gone"):
        quiet_trainer(callback, max_epochs=2).fit(module, loader(0))
    assert callback.history[-1]["step"] == 4


def test_a_weight_is_merged_after_the_last_step_that_trained_it_and_then_no_more():
    spy, seen = All(every=3, rule=Uniform(0.5)), []

    class Keeps(Does):
        def on_train_batch_end(self, *_):
            seen.append(self.net[0].weight.detach().clone())

    quiet_trainer(spy).fit(Keeps(freeze), loader(0))
    assert [record["step"] for record in spy.history] == [3, 6, 8]
    # trained at steps 4; merged at 6, and as it was at 8; callbacks come before the module
    assert torch.equal(seen[3], seen[4])
    assert not torch.equal(seen[4], seen[5])
    assert torch.equal(seen[5], seen[7])


@pytest.mark.parametrize("permanent", [False, True])
def test_pruned_weights_stay_zero(permanent):
    class Prunes(Plain):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                prune.l1_unstructured(self.net[0], "weight", amount=0.5)
            elif self.current_epoch == 1 and permanent:
                prune.remove(self.net[0], "weight")
                self.net[0].weight.register_hook(lambda gradient: gradient * 0)

    module = Prunes()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    callback = RecallCallback(every=2, task_epochs=4)
    with pytest.warns(UserWarning, match=r"net\.0\.weight, gone"):
        quiet_trainer(callback, max_epochs=4).fit(module, loader(0))
    module.net(torch.ones(1, 8))
    assert (module.net[0].weight == 0).float().mean() == 0.5


def test_lightnings_pruning_runs_to_the_end_of_a_stream():
    module = Plain()
    pruning = ModelPruning(
        "l1_unstructured", amount=0.3, parameters_to_prune=[(module.net[0], "weight")],
        use_lottery_ticket_hypothesis=False,
    )  # fmt: skip
    callback = RecallCallback(task_epochs=2)
    with pytest.warns(UserWarning, match=r"net\.0\.weight, gone"):
        quiet_trainer(callback, pruning, max_epochs=4).fit(module, loader(0))
    assert {record["task"] for record in callback.history} == {0, 1}
    assert (module.net[0].weight == 0).float().mean() > 0.3


def test_layers_that_are_unfrozen_within_a_task_are_named():
    class Backbone(Plain):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(8, 8)

        def training_step(self, batch, batch_idx):
            return super().training_step((self.backbone(batch[0]), batch[1]), batch_idx)

        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)

    unfreezing, spy = BackboneFinetuning(1, verbose=False), All(every=4, rule=Uniform(0.5))
    with pytest.warns(UserWarning, match=r"backbone\.weight, backbone\.bias, trainable only since"):
        quiet_trainer(unfreezing, spy, max_epochs=3).fit(Backbone(), loader(0))
    assert spy.moved() == {
        f"net.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")
    }


def adapted(*names):
    net = Plain().net
    for name in names:
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["2"], r=2), net, name)
    net[4].requires_grad_(True)
    return net


def test_an_adapter_that_is_switched_within_a_task_is_left_out():
    def switch(net):
        net[2].set_adapter("two")

    net = adapted("one", "two")
    net[2].set_adapter("one")
    module, spy = Does(switch, net), All(every=1, rule=Uniform(0.5))
    with pytest.warns(UserWarning, match="lora_A.one.weight, .*frozen"):
        quiet_trainer(spy, max_epochs=2).fit(module, loader(0))
    assert spy.moved() == {"net.4.weight", "net.4.bias"}


def test_an_update_with_a_frozen_factor_is_left_out_as_a_whole():
    def freeze_one(net):
        net[2].lora_A.requires_grad_(False)

    module, spy = Does(freeze_one, adapted("one")), All(every=1, rule=Uniform(0.5))
    with pytest.warns(UserWarning, match="lora_B.one.weight, merged as one with .*lora_A"):
        quiet_trainer(spy, max_epochs=2).fit(module, loader(0))
    assert spy.moved() == {"net.4.weight", "net.4.bias"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (LearningWithoutForgetting, "has the student's net.0.weight"),
        (L2ToSnapshot, "does not protect net.0.weight_orig"),
        (lambda: HalfFineTuning(fraction=0.99), "no longer freezes net.0.weight"),
    ],
    ids=["lwf", "l2", "hft"],
)
def test_other_methods_say_what_they_no_longer_protect(make, message):
    with pytest.warns(UserWarning, match=message):
        quiet_trainer(make(), max_epochs=2).fit(Does(prune_it), loader(0))


@pytest.mark.parametrize(
    "make", [LearningWithoutForgetting, L2ToSnapshot, ElasticWeightConsolidation]
)
def test_other_methods_go_on_where_weights_are_frozen(make):
    quiet_trainer(make(), max_epochs=2).fit(Does(freeze), loader(0))
