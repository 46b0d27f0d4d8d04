"""What the next task's merges keep of a model whose knowledge before its first task is known."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain, loader, quiet_trainer, task_data

KNEW = [(torch.randn(32, 8, generator=torch.Generator().manual_seed(9)), torch.zeros(32, 2))]


class Values(Plain):
    """Predicts numbers: it has no last layer of a classifier."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])


class Slope(Values):
    """One weight, whose curvature is the same in every task."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(1, 1, bias=False)), lr=0.1)
        nn.init.zeros_(self.net[0].weight)


def recall(**arguments):
    return RecallCallback(**{"prior": KNEW, "predictions": "values"} | arguments)


def values(task, width=2):
    """A task's batches: another input is to be told by each output."""
    inputs = task_data(task).tensors[0]
    told = inputs[:, task : task + 1].expand(-1, width)
    return DataLoader(TensorDataset(inputs, told), batch_size=8)


def trained(callback, tasks=2, model=None, batches=values):
    """Train task after task, a fit each; return the model, and its weights after each."""
    model, after = model or Values(), []
    for task in range(tasks):
        quiet_trainer(callback).fit(model, batches(task))
        after.append({name: weight.clone() for name, weight in weights_of(model).items()})
    return model, after


def slopes(callback, tasks):
    """Train one weight to be 1, 2, …; return the snapshot of each task, and the weight after it."""
    model, found = Slope(), []
    for task in range(tasks):
        ones = torch.ones(320, 1)
        batches = DataLoader(TensorDataset(ones, (task + 1) * ones), batch_size=16)
        quiet_trainer(callback).fit(model, batches)
        found.append((callback.snapshots[-1]["net.0.weight"].item(), model.net[0].weight.item()))
    return found


def test_it_is_the_mean_of_what_was_known_before_and_every_task():
    prior = [(torch.ones(16, 1), torch.ones(16, 1))]
    callback = recall(prior=prior)
    (first, one), (second, two), (third, _) = slopes(callback, 3)
    assert first == 0
    assert second == pytest.approx((first + one) / 2, rel=1e-3)
    assert third == pytest.approx((2 * second + two) / 3, rel=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"prior": None}, id="nothing known of before"),
        pytest.param({"plasticity": None}, id="a rule's own balance"),
        pytest.param(
            {"end_rule": "kfac_importance", "plasticity": 0.9, "every": 1.0}, id="importance"
        ),
    ],
)
def test_otherwise_it_is_the_model(arguments):
    callback = recall(**arguments)
    _, after = trained(callback)
    assert same(dict(callback.snapshots[-1]), after[0])


def test_of_a_classifier_whose_last_layer_is_fitted_it_is_the_model():
    known = [(KNEW[0][0], torch.zeros(32).long())]
    callback = RecallCallback(prior=known)
    _, after = trained(callback, model=Plain(), batches=loader)
    assert same(dict(callback.snapshots[-1]), after[0])


def test_the_model_itself_goes_on_as_it_was_merged():
    class Begun(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.weights = weights_of(pl_module)

    callback, begun = recall(), Begun()
    model, (first,) = trained(callback, tasks=1)
    quiet_trainer(callback, begun).fit(model, values(1))
    assert same(begun.weights, first)
    assert not same(dict(callback.snapshots[-1]), first)


def test_a_checkpoint_between_tasks_holds_it(tmp_path):
    callback = recall()
    trainer = quiet_trainer(callback)
    trainer.fit(model := Values(), values(0))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    quiet_trainer(callback).fit(model, values(1))
    resumed = recall()
    again = quiet_trainer(resumed, max_epochs=2)
    again.fit(Values(), values(1), ckpt_path=tmp_path / "end.ckpt")
    assert same(dict(resumed.snapshots[-1]), dict(callback.snapshots[-1]))


def test_what_has_another_shape_by_then_is_the_models():
    callback = recall()
    model, (first,) = trained(callback, tasks=1)
    model.net[4] = nn.Linear(16, 3)
    quiet_trainer(callback).fit(model, values(1, width=3))
    snapshot = callback.snapshots[-1]
    assert snapshot["net.4.weight"].shape == (3, 16)
    assert not torch.equal(snapshot["net.0.weight"], first["net.0.weight"])


def test_a_task_that_is_undone_leaves_it_as_it_was():
    callback = recall()
    model, _ = trained(callback)
    kept = callback.snapshots[-1]
    callback.on_rollback(None, model)
    quiet_trainer(callback).fit(model, values(2))
    assert same(dict(callback.snapshots[-1]), dict(kept))
