import copy

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Subspace, Uniform
from tests.support.callbacks import (
    FEW,
    Fixed,
    Spy,
    recall,
    same,
    weights_of,
)
from tests.support.model_kinds import CASES, Diverges
from tests.support.resumed_runs import differences
from tests.support.training import Plain, loader, quiet_trainer


def test_every_block_is_merged_with_its_own_coefficient():
    spy = Spy(every=1.0, rule="rbf", samples=FEW)
    quiet_trainer(spy).fit(Plain(), loader(0))
    coefficient = spy.history[-1]["coefficient"]
    assert len(set(coefficient.values())) == 3
    for block in spy.blocks:
        for name in block.weights:
            w = coefficient[block.name]
            expected = (1 - w) * spy.before[name] + w * spy.snapshots[-1][name]
            torch.testing.assert_close(spy.after[name], expected)


def test_blocks_that_drifted_more_keep_more_of_the_new():
    callback = recall(every=1.0)
    quiet_trainer(callback, max_epochs=3).fit(Plain(), loader(0))
    record = callback.history[-1]
    by_similarity = sorted(record["similarity"], key=record["similarity"].get)
    by_coefficient = sorted(record["coefficient"], key=record["coefficient"].get)
    assert by_similarity == by_coefficient
    spread = max(record["coefficient"].values()) - min(record["coefficient"].values())
    assert spread > 0.02


class Decays(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return [optimizer], [{"scheduler": rates, "interval": "step"}]


def kept_by(rule):
    callback = RecallCallback(every=2, rule=rule, merge_first_task=True)
    quiet_trainer(callback, max_steps=5, limit_train_batches=5).fit(Decays(), loader(0))
    return [list(record["coefficient"].values()) for record in callback.history]


def test_a_proximal_merge_within_a_task_has_the_size_of_the_steps_since_the_last():
    class Proximal(Uniform):
        is_proximal = True

    sizes = [(1 + 0.5) / 48, (0.25 + 0.125) / 48, 1.0]  # of two steps each, and the task's last
    for kept, size in zip(kept_by(Proximal(0.5)), sizes, strict=True):
        assert kept == pytest.approx([size / (1 + size)] * 3)


def test_a_weight_that_a_rule_states_is_that_whatever_the_steps():
    assert kept_by(Uniform(0.5)) == [[0.5] * 3] * 3


def test_batchnorm_statistics_are_merged_with_their_block():
    module, data = CASES["cnn with batchnorm"]()
    callback = RecallCallback(every=1.0, rule=Fixed({"model.features.0": 1.0}))
    then = module.model.features[1].running_mean.clone()
    quiet_trainer(callback).fit(module, data)
    assert torch.equal(module.model.features[1].running_mean, then)
    assert not torch.equal(module.model.features[4].running_mean, torch.zeros(8))


def test_a_merge_of_weights_that_are_not_finite_is_refused_and_reported():
    callback, model = recall(every=3), Diverges()
    with pytest.warns(UserWarning, match="merge refused at step 6, weights kept"):
        quiet_trainer(callback).fit(model, loader(0))
    assert [record["step"] for record in callback.history] == [3]
    assert model.net[0].weight.isnan().sum() in (0, model.net[0].weight.numel())


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({}, "must give a coefficient for the weight net.0"),
        ({"net.0": 1.5}, "block net.0 the coefficient 1.5"),
        ({"net.0": 0.5, "net.2": 0.5, "net.4": 0.5, "head": 1.0}, "'head' a coefficient"),
    ],
)
def test_what_a_rule_returns_is_checked(coefficients, message):
    class Bad(Fixed):
        def coefficients(self, inputs):
            return self.given

    model = Plain()
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(RecallCallback(rule=Bad(coefficients))).fit(model, loader(0))


def test_a_model_that_changed_since_the_snapshot():
    class Grows(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.net[0] = nn.Linear(8, 20)
                self.net[2] = nn.Linear(20, 16)

    with pytest.raises(
        MisconfigurationException, match=r"no longer matches the model.*net.0.weight"
    ):
        quiet_trainer(recall()).fit(Grows(), loader(0))


def test_scaled_matrices_move_weights_by_that_much_less():
    def moved(strength):
        torch.manual_seed(0)
        spy = Spy(every=1.0, rule=Subspace(strength=strength))
        quiet_trainer(spy).fit(Plain(), loader(0))
        return {name: now - spy.before[name] for name, now in spy.after.items()}

    whole, half = moved(1.0), moved(0.5)
    for name in whole:
        torch.testing.assert_close(half[name], 0.5 * whole[name], rtol=1e-3, atol=1e-6)


def test_a_matrix_that_could_not_be_solved_for_writes_nothing():
    """Not even the weights that come before it."""
    model, before = Plain(), []

    class Unsolvable(Subspace):
        def coefficients(self, inputs):
            weights = super().coefficients(inputs)
            weights["net.4.weight"].condition = float("nan")
            before.append({name: tensor.clone() for name, tensor in inputs.live.items()})
            return weights

    callback = RecallCallback(every=1.0, rule="importance", end_rule=Unsolvable())
    with pytest.warns(UserWarning, match=r"merge refused.*'net\.4\.weight' must be finite"):
        quiet_trainer(callback).fit(model, loader(0))
    assert same(weights_of(model), before[0])


def test_gradients_optimizer_and_mode_are_left_alone_by_the_subspace_rule():
    model = Plain(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)))

    class Watches(Spy):
        def look(self, pl_module):
            return {
                "optimizer": copy.deepcopy(pl_module.optimizers().optimizer.state_dict()["state"]),
                "gradients": [copy.deepcopy(p.grad) for p in pl_module.parameters()],
                "random": torch.get_rng_state(),
                "batches": int(pl_module.net[1].num_batches_tracked),
                "training": [child.training for child in pl_module.modules()],
            }

    spy = Watches(every=4, rule="subspace", end_rule="never")
    quiet_trainer(spy, max_epochs=2).fit(model, loader(0))
    assert [record["step"] for record in spy.history] == [4, 8, 12]
    assert all(spy.before["training"])
    assert differences(spy.before, spy.after) == []
