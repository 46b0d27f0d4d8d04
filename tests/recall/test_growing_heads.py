"""Heads that are reset or grow in the module's own hook at a task's start."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.measuring.moments import LowRankMoments
from recall_lightning.merging.rules import Uniform
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.ewc_lora import UpdateConsolidation
from recall_lightning.methods.finch import Finch
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.kfac_penalty import KfacPenalty
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.low_lr import LowLearningRate
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.methods.osf import OrthogonalSubspace
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.methods.wise_ft import WiseFT
from recall_lightning.recall.settings import MomentSettings
from tests.support.baseline_tools import added_gradients
from tests.support.callbacks import FEW, Spy, statistic
from tests.support.training import Plain, loader, quiet_trainer

CLASSES = 2  # a task


def classes(task, samples=32):
    generator = torch.Generator().manual_seed(task)
    inputs = torch.randn(samples, 8, generator=generator)
    return TensorDataset(inputs, CLASSES * task + (inputs[:, task] > 0).long())


def data(task, samples=32):
    return DataLoader(classes(task, samples), batch_size=8)


class Grows(Plain):
    """Has two more outputs in every task of an epoch, beside those that it had."""

    def __init__(self, optimizer=torch.optim.Adam):
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES)))
        self.optimizer = optimizer

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=1e-2)

    def on_train_epoch_start(self):
        self.grow_to(CLASSES * (self.current_epoch + 1))

    def grow_to(self, outputs):
        old = self.net[2]
        if old.out_features == outputs:
            return
        with torch.random.fork_rng():  # Lightning draws a loader's order before, after a resume
            torch.manual_seed(outputs)
            self.net[2] = nn.Linear(16, outputs)
        with torch.no_grad():
            self.net[2].weight[: old.out_features] = old.weight
            self.net[2].bias[: old.out_features] = old.bias
        self.trainer.strategy.setup_optimizers(self.trainer)

    def on_load_checkpoint(self, checkpoint):
        self.net[2] = nn.Linear(16, len(checkpoint["state_dict"]["net.2.bias"]))

    def train_dataloader(self):
        return data(self.current_epoch)


def fit(callback, model=None, tasks=3, **kwargs):
    model = model or Grows()
    kwargs = {"max_epochs": tasks, "reload_dataloaders_every_n_epochs": 1} | kwargs
    quiet_trainer(callback, **kwargs).fit(model)
    return model


def test_the_snapshot_is_taken_after_the_modules_own_hook():
    class Resets(Plain):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                nn.init.constant_(self.net[4].weight, 7.0)

    callback = RecallCallback(task_epochs=1)
    quiet_trainer(callback, max_epochs=2).fit(Resets(), loader(0))
    assert callback.snapshots[-1]["net.4.weight"].eq(7).all()


class SpyOnHead(Spy):
    def look(self, pl_module):
        return pl_module.net[2].weight.detach().clone()


RULES = [
    {"refit_head": False},
    {"rule": Uniform(0.5)},
    {"rule": "importance"},
    {"rule": "rbf", "samples": FEW},
    {"rule": "subspace"},
    {"rule": "kfac_subspace", "refit_head": False},
    {"rule": "rbf*importance", "samples": FEW},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_old_rows_of_a_head_are_merged_and_new_ones_left_as_they_are_trained(rule):
    callback = SpyOnHead(every=2, task_epochs=1, merge_first_task=False, **rule)
    model = fit(callback, tasks=2)
    assert model.net[2].weight.shape == (2 * CLASSES, 16)
    assert {record["task"] for record in callback.history} == {1}
    moved = (callback.after - callback.before).abs().amax(dim=1) > 0
    assert moved.tolist() == [True, True, False, False]


def test_the_old_rows_are_merged_as_those_of_a_head_that_has_not_grown():
    callback = SpyOnHead(every=1.0, task_epochs=1, merge_first_task=False, rule=Uniform(0.25))
    fit(callback, tasks=2)
    snapshot = callback.snapshots[-1]["net.2.weight"]
    merged = torch.lerp(callback.before, snapshot, 0.25)[:CLASSES]
    torch.testing.assert_close(callback.after[:CLASSES], merged)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_head_grows_task_after_task_and_what_is_known_grows_along(optimizer):
    rules = {"rule": "kfac_importance", "end_rule": "importance"}
    callback = RecallCallback(every=2, task_epochs=1, **rules)
    fit(callback, Grows(optimizer))
    assert statistic(callback, "importance").by_name["net.2.weight"].shape == (3 * CLASSES, 16)
    assert statistic(callback, "moments").known.outputs["net.2.weight"].width == 3 * CLASSES
    assert [record["task"] for record in callback.history[-2:]] == [2, 2]


def test_what_is_known_at_a_head_that_grows_wide_goes_on_at_a_rank():
    moments = MomentSettings(width=5, rank=4)
    callback = RecallCallback(task_epochs=1, moments=moments, merge_first_task=False)
    fit(callback)  # from two outputs to six
    outputs = statistic(callback, "moments").known.outputs["net.2.weight"]
    assert isinstance(outputs, LowRankMoments)
    assert (outputs.width, outputs.rank, float(outputs.count)) == (6, 4, 3)


def test_nothing_is_known_of_new_rows_while_their_first_task_is_trained():
    class Looks(RecallCallback):
        def on_task_start(self, trainer, pl_module, task):
            super().on_task_start(trainer, pl_module, task)
            if task == 1:
                known = statistic(self, "importance").by_name["net.2.weight"]
                outputs = statistic(self, "moments").known.outputs["net.2.weight"].matrix
                seen.append((known[:CLASSES].any(), known[CLASSES:].any()))
                seen.append((outputs[:CLASSES, :CLASSES].any(), outputs[CLASSES:].any()))

    seen = []
    fit(Looks(task_epochs=1, rule="kfac_importance", end_rule="importance"), tasks=2)
    assert seen == [(True, False), (True, False)]


def test_a_classifiers_head_that_grows_is_fitted_whatever_a_merge_costs():
    class Learns(Grows):
        def train_dataloader(self):
            return data(self.current_epoch, samples=320)

    callback = RecallCallback(task_epochs=1, merge_first_task=False)
    fit(callback, Learns())
    ends = [each for each in callback.history if "plasticity" in each]
    assert [each["refitted"] for each in ends] == ["net.2"] * 2


def test_a_layer_that_is_new_in_a_task_is_left_out_of_its_merges_and_merged_in_the_next():
    class Adds(Plain):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.net = nn.Sequential(*self.net, nn.ReLU(), nn.Linear(2, 2))
                self.trainer.strategy.setup_optimizers(self.trainer)

    class SpyOnNew(Spy):
        def look(self, pl_module):
            return [weight.detach().clone() for weight in pl_module.net[6:].parameters()]

    for epochs, same in ((2, True), (3, False)):
        callback = SpyOnNew(every=1.0, task_epochs=1, rule=Uniform(0.5), merge_first_task=False)
        quiet_trainer(callback, max_epochs=epochs).fit(Adds(), loader(0))
        pairs = zip(callback.before, callback.after, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs) == same


def test_a_head_that_grows_between_fits_is_merged_alike():
    class GrowsBefore(Grows):
        def on_fit_start(self):
            self.grow_to(CLASSES * (1 + task))

        def on_train_epoch_start(self):
            pass

    model, callback = GrowsBefore(), SpyOnHead(every=1.0, merge_first_task=False, rule=Uniform(0.5))
    for task in range(2):
        quiet_trainer(callback).fit(model, data(task))
    moved = (callback.after - callback.before).abs().amax(dim=1) > 0
    assert moved.tolist() == [True, True, False, False]


METHODS = [AdaptiveInterval, ElasticWeightConsolidation, HalfFineTuning, L2ToSnapshot]
METHODS += [LowLearningRate, LearningWithoutForgetting, SequentialFinetuningAveraging, WiseFT]
METHODS += [Finch, KfacPenalty, OrthogonalSubspace, UpdateConsolidation]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_new_rows_of_a_head(method):
    class Watches(Grows):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            self.first = self.net[2].weight.detach().clone()

    model = fit(method(task_epochs=1), Watches())
    moved = (model.net[2].weight - model.first).abs().amax(dim=1)
    assert moved[-CLASSES:].min() > 0


@pytest.mark.parametrize(
    "method", [ElasticWeightConsolidation, L2ToSnapshot, KfacPenalty, UpdateConsolidation]
)
def test_penalties_pull_old_rows_alone(method):
    callback = method(strength=10.0, task_epochs=1)
    added = added_gradients(
        callback, Grows(), None, max_epochs=2, reload_dataloaders_every_n_epochs=1
    )
    pull = added[-1][0]["net.2.weight"].abs().amax(dim=1) > 0
    assert pull.tolist() == [True, True, False, False]


def test_a_lower_rate_holds_for_optimizers_that_were_made_anew():
    moved = []
    for tasks in (1, 2):
        torch.manual_seed(0)
        callback = LowLearningRate(factor=1e-6, from_first_task=False, task_epochs=1)
        moved.append(fit(callback, Grows(), tasks=tasks).net[0].weight)
    torch.testing.assert_close(*moved, rtol=0, atol=1e-6)


def test_distillation_is_from_the_outputs_that_there_were():
    class Reset(Grows):
        """The new outputs are all that the teacher says, unless they are left out."""

        def grow_to(self, outputs):
            super().grow_to(outputs)
            if outputs > CLASSES:
                nn.init.constant_(self.net[2].bias[CLASSES:], 50.0)

    callback = LearningWithoutForgetting(task_epochs=1)
    added = added_gradients(
        callback, Reset(), None, max_epochs=2, reload_dataloaders_every_n_epochs=1
    )
    assert callback._outputs == {0: CLASSES, 1: 2 * CLASSES}
    assert all(torch.isfinite(g).all() for step, _ in added for g in step.values())


def test_a_run_whose_head_has_grown_resumes_exactly(tmp_path):
    class Saves(RecallCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def train(checkpoint=None):
        torch.manual_seed(0)
        model, callback = Grows(), Saves(every=2, task_epochs=1)
        trainer = quiet_trainer(callback, max_epochs=3, reload_dataloaders_every_n_epochs=1)
        trainer.fit(model, ckpt_path=checkpoint)
        return model.state_dict()

    whole = train()
    for epoch in range(2):
        resumed = train(tmp_path / f"{epoch}.ckpt")
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_head_that_grows_in_the_midst_of_a_task_is_refused_by_name():
    class Late(Grows):
        def on_train_epoch_start(self):
            self.grow_to(CLASSES * (1 + self.current_epoch // 2))

        def train_dataloader(self):
            return data(0)

    callback = RecallCallback(every=2, task_epochs=[0, 1])
    with pytest.raises(
        MisconfigurationException, match=r"net\.2\.weight \(\(2, 16\) then, \(4, 16"
    ):
        fit(callback, Late(), tasks=3)


def test_the_monitor_takes_no_notice_of_a_head_that_grows():
    class Validates(Grows):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            known = self.net(batch[0]).argmax(1) == batch[1]
            self.log("val/acc", known.float().mean())

        def val_dataloader(self):
            return [data(task, 8) for task in range(3)]

    monitor = ForgettingMonitor("val/acc", task_epochs=1)
    fit(monitor, Validates())
    assert torch.tensor(monitor.matrix).shape == (3, 3)


class GrowsInPlace(Grows):
    def grow_to(self, outputs):
        weight, bias = self.net[2].weight, self.net[2].bias
        more = outputs - len(bias)
        weight.data = torch.cat([weight.data, torch.zeros(more, 16)])
        bias.data = torch.cat([bias.data, torch.zeros(more)])
        weight.grad = bias.grad = None


def test_a_head_may_grow_within_its_own_tensors():
    callback = RecallCallback(every=2, task_epochs=1)
    model = fit(callback, GrowsInPlace(torch.optim.SGD))
    assert len(model.net[2].bias) == 3 * CLASSES
    assert {merge["task"] for merge in callback.history} == {0, 1, 2}
