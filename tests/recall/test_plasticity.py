import math
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import KfacSubspace, MergeRule, Uniform
from recall_lightning.recall import plasticity as measured
from recall_lightning.recall.plasticity import TaskGain
from recall_lightning.recall.records import record_scalars
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain, loader, quiet_trainer


def trained(rule, plasticity, kind=Plain):
    torch.manual_seed(0)
    model = kind()
    callback = RecallCallback(
        every=1.0,
        rule=rule,
        end_rule=rule,
        plasticity=plasticity,
        merge_first_task=False,
        refit_head=False,
    )
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    return model, callback


class Nothing(MergeRule):
    def coefficients(self, inputs):
        return {block.name: 0.0 for block in inputs.blocks}


@pytest.mark.parametrize("plasticity", [0.95, 0.5])
def test_the_merge_leaves_that_share_of_the_gain(plasticity):
    _, callback = trained(KfacSubspace(), plasticity)
    (record,) = callback.history
    loss = record["loss"]
    then, now, merged = (math.exp(-loss[name]) for name in ("snapshot", "live", "merged"))
    assert record["plasticity"] == pytest.approx((merged - then) / (now - then))
    assert record["plasticity"] == pytest.approx(plasticity, abs=0.02)


def test_the_loss_is_that_of_as_many_batches_as_hold_the_labels(monkeypatch):
    counts, losses = set(), measured.task_losses

    def counted(context, run, batches, watch):
        counts.add(len(batches))
        return losses(context, run, batches, watch)

    monkeypatch.setattr(measured, "task_losses", counted)
    trained(KfacSubspace(), 0.9)
    monkeypatch.setattr(measured, "_COMPARED_LABELS", 10)  # of batches of 8
    trained(KfacSubspace(), 0.9)
    assert counts == {1, 4, 2}  # the first of a task, and its last


def test_what_was_tried_stands_in_the_history_with_how_far_predictions_go():
    _, callback = trained(KfacSubspace(), 0.9)
    (record,) = callback.history
    front = record["front"]
    assert [point["keep"] for point in front] == sorted(point["keep"] for point in front)
    assert all(math.isfinite(value) for point in front for value in point.values())
    assert front[0]["divergence"] > front[-1]["divergence"] > 0
    far = record["divergence"]
    assert front[-1]["divergence"] < far["merged"] < far["live"]
    assert record_scalars(record)["recall/divergence/merged"] == far["merged"]


def test_where_predictions_are_not_known_no_divergence_is_told():
    class Unclear(Plain):
        def forward(self, inputs):
            return {"what": self.net(inputs)}

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0])["what"], batch[1])

    _, callback = trained(Uniform(0.5), 0.9, Unclear)
    (record,) = callback.history
    assert "divergence" not in record
    assert {point["divergence"] for point in record["front"]} == {None}


def test_it_is_the_merge_of_the_balance_that_was_found():
    found, callback = trained(KfacSubspace(), 0.8)
    given, _ = trained(KfacSubspace(new_inputs=1 / callback.history[0]["keep"]), None)
    assert same(weights_of(found), weights_of(given))


def test_a_task_without_a_gain_stays_at_what_was_known():
    class Still(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-30)

    model, callback = trained(Uniform(0.5), 0.9, Still)
    assert same(weights_of(model), dict(callback.snapshots[-1]))
    assert math.isnan(callback.history[0]["plasticity"])


def test_the_step_that_measures_the_loss_leaves_no_trace():
    class Logs(Plain):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            inputs, labels = batch
            loss = nn.functional.cross_entropy(self.net(self.dropout(inputs)), labels.long())
            self.log("loss", loss, on_step=True, on_epoch=True)
            return {"loss": loss}

    runs = [trained(Nothing(), plasticity, Logs)[0] for plasticity in (0.9, None)]
    assert runs[0].steps == runs[1].steps
    assert same(*map(weights_of, runs))


def test_a_loss_that_cannot_be_measured_is_told_once_and_the_rule_decides():
    class ByHand(Plain):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            inputs, labels = batch
            self.optimizers().zero_grad()
            loss = nn.functional.cross_entropy(self.net(inputs), labels.long())
            self.manual_backward(loss)
            self.optimizers().step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_rule, callback = trained(Uniform(0.3), 0.9, ByHand)
    messages = [str(each.message) for each in caught]
    said = [message for message in messages if "cannot measure plasticity" in message]
    assert len(said) == 1
    assert "ByHand optimises by hand" in said[0]
    assert callback.history[0]["keep"] == 1.0
    assert same(weights_of(by_rule), weights_of(trained(Uniform(0.3), None, ByHand)[0]))


def test_a_merge_that_costs_more_than_is_allowed_is_told_with_its_figure():
    class Everything(MergeRule):
        def coefficients(self, inputs):
            return {block.name: 1.0 for block in inputs.blocks}  # which no odds change

    with pytest.warns(UserWarning, match=r"leaves 0 % of what the task has gained"):
        trained(Everything(), 0.9)


def test_a_rule_that_costs_half_of_the_gain_is_told_with_what_to_turn():
    with pytest.warns(UserWarning, match=r"leaves \d+ % of what .* set plasticity"):
        trained(KfacSubspace(new_inputs=1e-6), None)


def test_a_pretrained_model_is_merged_once_a_task_under_defaults_of_the_trainer(tmp_path):
    model, callback = Plain(), RecallCallback()
    trainer = Trainer(max_epochs=2, callbacks=[callback], default_root_dir=tmp_path)
    trainer.fit(model, loader(0), loader(1))
    (record,) = callback.history
    assert record["step"] == trainer.global_step
    assert record["plasticity"] == pytest.approx(0.95, abs=0.02)
    assert record_scalars(record).keys() >= {"recall/plasticity", "recall/keep"}


def test_a_share_of_an_infinite_loss_is_less_than_none():
    assert TaskGain(snapshot=math.inf, live=0.0, merged=math.inf).share == 0.0
    assert TaskGain(snapshot=2.0, live=1.0, merged=math.inf).share < 0
    assert math.isnan(TaskGain(snapshot=2.0, live=math.nan, merged=1.0).share)


def test_a_step_that_writes_into_its_batch_finds_what_another_finds():
    class InPlace(Plain):
        def training_step(self, batch, batch_idx):
            inputs, labels = batch
            inputs.mul_(0.5)
            return nn.functional.cross_entropy(self.net(inputs * 2), labels)

    (one,), (other,) = (trained(Uniform(0.5), 0.9, kind)[1].history for kind in (InPlace, Plain))
    assert one["keep"] == pytest.approx(other["keep"], rel=1e-3)


def test_the_unit_of_a_squared_error_does_not_matter():
    def gain(unit):
        return TaskGain(4.0 * unit, 1.0 * unit, 1.2 * unit, is_of_values=True).share

    assert gain(1.0) == pytest.approx(gain(1e6)) == pytest.approx(gain(1e-6))
    assert 0.8 < gain(1.0) < 0.85


def test_a_regression_is_taken_for_one():
    class Regression(Plain):
        def training_step(self, batch, batch_idx):
            outputs = self.net(batch[0])
            return 1e4 * nn.functional.mse_loss(outputs, batch[0][:, :2])

    _, callback = trained(KfacSubspace(), 0.9, Regression)
    loss = callback.history[0]["loss"]
    assert callback.history[0]["plasticity"] == TaskGain(**loss, is_of_values=True).share
    assert callback.history[0]["keep"] > 1e-3


@pytest.mark.parametrize("loss", [None, math.nan])
def test_batches_without_a_loss_do_not_count(loss):
    class Skips(Plain):
        def training_step(self, batch, batch_idx):
            found = super().training_step(batch, batch_idx)
            if batch_idx % 4:
                return found
            return None if loss is None else found * loss

        def on_after_backward(self):
            for parameter in self.parameters():
                parameter.grad.nan_to_num_(0.0)

    _, callback = trained(Uniform(0.5), 0.9, Skips)
    found = callback.history[0]["loss"]
    assert all(map(math.isfinite, found.values()))
    assert callback.history[0]["plasticity"] >= 0.9


def test_a_penalty_on_gradients_is_measured_too():
    class Penalised(Plain):
        def training_step(self, batch, batch_idx):
            inputs = batch[0].requires_grad_()
            loss = nn.functional.cross_entropy(self.net(inputs), batch[1])
            (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
            return loss + 0.01 * slope.square().sum()

    _, callback = trained(Uniform(0.5), 0.9, Penalised)
    assert callback.history[0]["plasticity"] >= 0.9


def merged_after(train, lr, **options):
    """Train a task well, then one in which ``train`` is the loss, and return its merge."""
    torch.manual_seed(0)

    class Trains(Plain):
        lr = 1e-2

        def training_step(self, batch, batch_idx):
            return train(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=self.lr)

    model, callback = Trains(), RecallCallback(every=1.0, **options)
    quiet_trainer(max_epochs=10).fit(model, loader(0))
    model.lr = lr
    quiet_trainer(callback).fit(model, loader(0))
    return callback.history[0]


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_a_task_that_diverged_goes_back_to_what_was_known(lr):
    merge = merged_after(nn.functional.cross_entropy, lr)
    assert merge["loss"]["live"] > 2 * merge["loss"]["snapshot"]
    assert merge["loss"]["merged"] == pytest.approx(merge["loss"]["snapshot"], rel=0.01)


def small_error(outputs, labels):
    return nn.functional.mse_loss(0.01 * outputs, 0.01 * nn.functional.one_hot(labels, 2).float())


def test_however_small_a_loss_is_one_without_a_gain_keeps_the_old():
    merge = merged_after(small_error, 0.3)
    assert merge["loss"]["live"] > merge["loss"]["snapshot"]
    assert merge["loss"]["merged"] == pytest.approx(merge["loss"]["snapshot"], rel=0.01)


@pytest.mark.parametrize("rule", ["rbf", "importance", "subspace"])
def test_a_rule_that_asks_for_no_predictions_takes_them_for_plasticity(rule):
    class Regression(Plain):
        def training_step(self, batch, batch_idx):
            targets = nn.functional.one_hot(batch[1], self.net[-1].out_features).float()
            return nn.functional.mse_loss(1e4 * self.net(batch[0]), 1e4 * targets)

    torch.manual_seed(0)
    found = []
    for predictions in ("auto", "values"):
        callback = RecallCallback(rule=rule, plasticity=0.9, every=1.0, predictions=predictions)
        quiet_trainer(callback).fit(Regression(), loader(0))
        found.append(callback.history[0]["plasticity"])
    assert min(found) > 0.89


def test_a_loss_below_zero_is_no_squared_error():
    assert TaskGain(3.0, -1.5, -0.2, is_of_values=True).share == TaskGain(3.0, -1.5, -0.2).share
    assert math.isnan(TaskGain(1e-40, 1e-41, 1e-41, is_of_values=True).share)
