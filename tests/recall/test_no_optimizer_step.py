"""A task in which nothing is learned is said, and neither merged nor protected."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision

from recall_lightning import RecallCallback
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.recall.settings import ImportanceSettings
from tests.support.callbacks import same, statistic, weights_of
from tests.support.training import Plain, loader, quiet_trainer

SAID = "no optimizer step was taken in the task 'task 0'"


class Skips(Plain):
    """Has nothing to learn from its first batches."""

    def __init__(self, skipped=8, **kwargs):
        super().__init__(**kwargs)
        self.skipped = skipped

    def training_step(self, batch, batch_idx):
        self.skipped -= 1
        return None if self.skipped >= 0 else super().training_step(batch, batch_idx)


class AccumulatesLong(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx == 1000:
            self.optimizers().step()


class WithSGD(Skips):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithLion(Skips):
    """An optimizer with betas that keeps no squared gradients."""

    def configure_optimizers(self):
        class Lion(torch.optim.Optimizer):
            def step(self, closure=None):
                loss = closure()
                for p in self.param_groups[0]["params"]:
                    if p.grad is not None:
                        self.state[p]["exp_avg"] = p.grad.clone()
                        p.data.sub_(0.01 * p.grad.sign())
                return loss

        return Lion(self.parameters(), {"betas": (0.9, 0.99)})


def overflowing(*callbacks):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10_000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    return quiet_trainer(*callbacks, plugins=plugin)


@pytest.mark.parametrize("arguments", [{}, {"rule": "subspace"}, {"rule": "importance"}])
@pytest.mark.parametrize("make", [Skips, AccumulatesLong, WithSGD])
def test_it_is_said_and_leaves_weights_and_statistics_alone(make, arguments, tmp_path):
    model, callback = make(), RecallCallback(**arguments)
    before = weights_of(model)
    trainer = Trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match=SAID):
        trainer.fit(model, loader(0))
    assert same(before, weights_of(model))
    assert callback.history == []
    assert not any(child._forward_hooks for child in model.modules())
    assert not any(getattr(s, "tasks", 0) for s in callback._statistics.active)


def test_steps_that_amp_skips_are_none():
    model, callback = Plain(), RecallCallback()
    trainer = overflowing(callback)
    with pytest.warns(UserWarning, match=SAID):
        trainer.fit(model, loader(0))
    assert trainer.global_step == 8
    assert statistic(callback, "moments").known.tasks == 0


def test_the_task_that_then_is_the_first_to_learn_counts_as_the_first():
    model, callback = Skips(), RecallCallback(merge_first_task=False)
    for task in range(3):
        quiet_trainer(callback).fit(model, loader(task))
    assert {record["task"] for record in callback.history} == {2}
    assert statistic(callback, "moments").known.tasks == 2


def test_a_resumed_run_knows_that_nothing_was_learned_before(tmp_path):
    model, callback = Skips(), RecallCallback(merge_first_task=False)
    trainer = quiet_trainer(callback)
    trainer.fit(model, loader(0))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    callback = RecallCallback(merge_first_task=False)
    callback.load_state_dict(
        torch.load(tmp_path / "first.ckpt", weights_only=True)["callbacks"]["RecallCallback"]
    )
    quiet_trainer(callback).fit(model, loader(1))
    assert callback.task == 1
    assert callback.history == []


def test_a_task_that_learns_from_some_batches_counts():
    model, callback = Skips(skipped=7), RecallCallback()
    quiet_trainer(callback).fit(model, loader(0))
    assert [record["task"] for record in callback.history] == [0]
    assert statistic(callback, "importance").tasks == 1


@pytest.mark.parametrize("make", [WithSGD, WithLion])
def test_where_importance_comes_from_is_decided_at_the_first_step_that_counts(make):
    model, callback = make(skipped=2), RecallCallback(importance=ImportanceSettings(steps=50))
    quiet_trainer(callback).fit(model, loader(0))
    assert statistic(callback, "importance").tasks == 1


def test_ewc_has_nothing_of_it():
    callback = ElasticWeightConsolidation(from_first_task=False)
    with pytest.warns(UserWarning, match="task 0 took no optimizer step"):
        quiet_trainer(callback).fit(Skips(), loader(0))
    assert not callback.protects


def test_who_overrides_the_hook_before_a_step_without_super_has_learned():
    class Own(RecallCallback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            pass

    callback = Own(rule="subspace")
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert callback.history


def test_steps_without_a_loss_keep_no_graphs():
    kept = []

    class Forwards(Skips):
        def training_step(self, batch, batch_idx):
            loss = super().training_step((batch[0], batch[1]), batch_idx)
            if loss is None:
                self.net(batch[0])
                kept.append(len(statistic(callback, "moments")._loss._outputs))
            return loss

    callback = RecallCallback(plasticity=None)  # or it runs the training step once more
    quiet_trainer(callback).fit(Forwards(), loader(0))
    assert kept == [1] * 8
