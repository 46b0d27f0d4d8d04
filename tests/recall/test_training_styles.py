"""However a model is built and trained, its merges are those of a few lines written by hand."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import ImportanceSettings
from tests.callbacks.test_task_aware import StepsEachFourBatches, TwoOptimizers
from tests.measuring.test_isolation import Lora
from tests.support.callbacks import FEW, Never, Spy, statistic
from tests.support.training import Plain, loader, quiet_trainer

EVERY, WEIGHT = 3, 0.25


class ByHand(Callback):
    """Averages with the weights from the fit's start after every third optimizer step."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.snapshot = {
            name: tensor.clone()
            for name, tensor in pl_module.state_dict(keep_vars=False).items()
            if tensor.is_floating_point()
        }
        self.steps = self.seen = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        self.steps += 1
        if self.steps % EVERY == 0:
            state, done = pl_module.state_dict(), set()
            apart = {n: (state[n] - then).square() for n, then in self.snapshot.items()}
            for name, then in self.snapshot.items():
                if state[name].data_ptr() not in done:
                    state[name].lerp_(then, WEIGHT)
                done.add(state[name].data_ptr())
                if name.endswith("running_var"):
                    of_means = apart[name.replace("running_var", "running_mean")]
                    state[name].add_(WEIGHT * (1 - WEIGHT) * of_means)


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, inputs):
        return checkpoint(self.inner, inputs, use_reentrant=self.reentrant)


def layers(wrap=lambda layer: layer, middle=lambda: nn.Linear(16, 16)):
    hidden = [wrap(nn.Sequential(middle(), nn.ReLU())) for _ in range(2)]
    return nn.Sequential(nn.Linear(8, 16), *hidden, nn.Linear(16, 2))


class Scheduled(Plain):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        each_step = {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": each_step}


class BuiltLate(Plain):
    def configure_model(self):
        if not hasattr(self.net, "0"):
            self.net = layers()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, inputs):
        return self.head(self.rnn(inputs.unflatten(1, (2, 4)))[0][:, -1])


class Stateful(nn.Module):
    """Carries its state from batch to batch, and counts in a list, a number and a buffer."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRUCell(8, 6), nn.Linear(6, 2)
        self.h, self.seen, self.count = torch.zeros(8, 6), [], 0
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, inputs):
        self.mean.mul_(0.9).add_(0.1 * inputs.mean(0))
        self.seen.append(self.h[: len(inputs)].mean())
        self.count += 1
        scale = 1 + 0.01 * self.count + self.seen[-1]
        if len(self.h) != len(inputs):
            self.h = torch.zeros(len(inputs), 6)
        h = self.rnn(inputs - self.mean, self.h)
        self.h = h.detach()
        return self.head(h) * scale


def frozen(net):
    net[0].requires_grad_(False)
    return net


def tied():
    net = layers()
    net[2][0].weight = net[1][0].weight
    return net


STYLES = {
    "plain": (lambda: Plain(layers()), {}),
    "accumulation": (lambda: Plain(layers()), {"accumulate_grad_batches": 3}),
    "accumulation schedule": (
        lambda: Plain(layers()),
        {"callbacks": lambda: [GradientAccumulationScheduler({0: 2})]},
    ),
    "clipped norm": (lambda: Plain(layers()), {"gradient_clip_val": 0.1}),
    "clipped values": (
        lambda: Plain(layers()),
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ),
    "scheduler": (lambda: Scheduled(layers()), {}),
    "several optimizers": (TwoOptimizers, {}),
    "steps as it likes": (StepsEachFourBatches, {}),
    "compiled module": (lambda: Plain(torch.compile(layers(), backend="eager")), {}),
    "compiled whole": (lambda: torch.compile(Plain(layers()), backend="eager"), {}),
    "checkpointing": (lambda: Plain(layers(lambda layer: Checkpointed(layer, False))), {}),
    "reentrant checkpointing": (lambda: Plain(layers(lambda layer: Checkpointed(layer, True))), {}),
    "built in configure_model": (lambda: BuiltLate(nn.Identity()), {}),
    "partly frozen": (lambda: Plain(frozen(layers())), {}),
    "tied": (lambda: Plain(tied()), {}),
    "weight norm": (
        lambda: Plain(layers(middle=lambda: parametrizations.weight_norm(nn.Linear(16, 16)))),
        {},
    ),
    "batch norm": (lambda: Plain(layers(lambda layer: layer.append(nn.BatchNorm1d(16)))), {}),
    "adapters added for evaluation": (
        lambda: Plain(nn.Sequential(nn.Linear(8, 4), Lora(), nn.Linear(4, 2))),
        {},
    ),
    "state": (lambda: Plain(Stateful()), {}),
    "recurrent": (lambda: Plain(Recurrent()), {}),
}
styles = pytest.mark.parametrize("style", STYLES)


def weights_after(style, *callbacks):
    torch.manual_seed(0)
    make, options = STYLES[style]
    options = dict(options)
    others = options.pop("callbacks", list)()
    module = make()
    quiet_trainer(*callbacks, *others, **options).fit(module, loader(0, samples=96))
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@styles
def test_merges_are_those_written_by_hand(style):
    rule, by_hand = Uniform(WEIGHT), ByHand()
    expected = weights_after(style, by_hand)
    end_rule = rule if by_hand.steps % EVERY == 0 else "never"
    callback = RecallCallback(every=EVERY, rule=rule, end_rule=end_rule)
    merged = weights_after(style, callback)
    assert len(callback.history) == by_hand.steps // EVERY > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor)


PRODUCT = {
    "rule": "rbf*importance",
    "end_rule": "kfac_subspace",
    "samples": FEW,
    "importance": ImportanceSettings("gradients"),
}


@styles
@pytest.mark.parametrize("rules", [{}, PRODUCT], ids=["default", "product"])
def test_measuring_leaves_training_as_it_was(style, rules):
    plain = weights_after(style)
    measured = weights_after(style, Never(every=EVERY, **rules))
    assert all(torch.equal(plain[name], tensor) for name, tensor in measured.items())


@styles
def test_the_default_rules_merge(style):
    callback = RecallCallback(every=EVERY)
    weights = weights_after(style, callback)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    for record in callback.history:
        assert all(0 <= value <= 1 for value in record["coefficient"].values())
    assert len(callback.history) >= 1


@pytest.mark.parametrize(
    "rules",
    [{"rule": "rbf", "samples": FEW}, {"rule": "importance", "end_rule": "subspace"}],
    ids=lambda rules: rules["rule"],
)
@pytest.mark.parametrize("style", ["checkpointing", "reentrant checkpointing"])
def test_activation_checkpointing_changes_no_merge(style, rules):
    def train(style):
        return weights_after(style, RecallCallback(every=EVERY, **rules)).values()

    assert all(torch.equal(*pair) for pair in zip(train("plain"), train(style), strict=True))


def test_curvature_through_reentrant_checkpoints_is_said_to_be_unknown():
    with pytest.warns(UserWarning, match="curvature cannot be measured.*use_reentrant"):
        weights_after("reentrant checkpointing", RecallCallback(every=EVERY))


@pytest.mark.parametrize("rules", [{}, {"rule": "importance", "end_rule": "subspace"}])
def test_parameters_that_become_trainable_at_a_boundary_are_merged_from_then_on(rules):
    module, callback = Plain(frozen(layers())), RecallCallback(every=EVERY, **rules)
    quiet_trainer(callback).fit(module, loader(0))
    assert "net.0.weight" not in callback.snapshots[0]
    module.net[0].requires_grad_(True)
    quiet_trainer(callback).fit(module, loader(1))
    assert "net.0.weight" in callback.snapshots[0]
    assert callback.history[-1]["coefficient"]["net.0"] > 0


def test_parameters_that_become_trainable_within_a_task_are_left_alone_until_the_next():
    class Unfreezes(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            self.net[0].requires_grad_(batch_idx >= 4)

    module = Unfreezes(frozen(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))))
    spy = Spy(every=6, rule=Uniform(0.5), end_rule="never")
    quiet_trainer(spy).fit(module, loader(0))
    assert len(spy.history) == 1
    assert torch.equal(spy.before["net.0.weight"], spy.after["net.0.weight"])
    assert not torch.equal(spy.before["net.1.weight"], spy.after["net.1.weight"])


class TwoAdams(TwoOptimizers):
    def configure_optimizers(self):
        return [torch.optim.Adam(layer.parameters()) for layer in (self.net[0], self.net[2])]


def test_every_optimizer_forgets_its_running_means_of_merged_weights_if_asked_to():
    class Watches(RecallCallback):
        def _reset_optimizers(self, trainer, pl_module):
            super()._reset_optimizers(trainer, pl_module)
            left.append([len(optimizer.state) for optimizer in trainer.optimizers])

    left = []
    callback = Watches(every=4, rule=Uniform(0.2), optimizer_state="reset")
    quiet_trainer(callback).fit(TwoAdams(), loader(0))
    assert left == [[0, 0], [0, 0]]


def test_importance_is_read_from_every_optimizer():
    callback = RecallCallback(every=4, rule="importance")
    quiet_trainer(callback).fit(TwoAdams(), loader(0))
    assert {"net.0.weight", "net.2.bias"} <= set(statistic(callback, "importance").by_name)
