import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Importance
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.settings import ImportanceSettings
from recall_lightning.recall.statistics.importance import ParameterImportance, optimizer_importance
from tests.support.callbacks import Spy, statistic, weights_of
from tests.support.training import Plain, loader, quiet_trainer

IMPORTANCE = {"every": 0.5, "rule": "importance"}


def importance_of(callback):
    return statistic(callback, "importance")


def stepped(make, steps=3):
    """A layer trained for a few steps, and its squared gradients, oldest first."""
    layer = nn.Linear(3, 2)
    optimizer, squares = make(layer.parameters()), []
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 3)).square().sum().backward()
        squares.append({name: p.grad.square().clone() for name, p in layer.named_parameters()})
        optimizer.step()
    return layer, optimizer, squares


ADAMS = {
    "Adam": lambda p: torch.optim.Adam(p, betas=(0.9, 0.7)),
    "AdamW": lambda p: torch.optim.AdamW(p, betas=(0.9, 0.7)),
    "foreach": lambda p: torch.optim.AdamW(p, betas=(0.9, 0.7), foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, betas=(0.9, 0.7), fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, betas=(0.9, 0.7), amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, betas=(0.9, 0.7)),
    "RAdam": lambda p: torch.optim.RAdam(p, betas=(0.9, 0.7)),
    "tensor betas": lambda p: torch.optim.Adam(
        p, betas=(torch.tensor(0.9), torch.tensor(0.7)), lr=torch.tensor(1e-3)
    ),
}


@pytest.mark.parametrize("kind", ADAMS)
def test_adams_state_is_the_weighted_mean_of_squared_gradients(kind):
    layer, optimizer, squares = stepped(ADAMS[kind])
    shares = [0.7**age for age in (2, 1, 0)]
    found = optimizer_importance([optimizer], dict(layer.named_parameters()))
    for name in ("weight", "bias"):
        mean = sum(w * s[name] for w, s in zip(shares, squares, strict=True)) / sum(shares)
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), torch.optim.Adagrad])
def test_an_optimizer_without_such_a_state_is_named(make):
    layer, optimizer, _ = stepped(make)
    with pytest.raises(ValueError, match=f"{type(optimizer).__name__} does not keep: use import"):
        optimizer_importance([optimizer], dict(layer.named_parameters()))


class Sgd(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def test_sgd_is_refused_after_its_first_step_in_one_sentence_and_gradients_are_the_way_out():
    callback = RecallCallback(**IMPORTANCE, importance=ImportanceSettings("optimizer"))
    trainer = quiet_trainer(callback)
    with pytest.raises(MisconfigurationException, match=r"SGD does not keep.*'gradients'"):
        trainer.fit(Sgd(), loader(0))
    assert trainer.global_step == 1
    callback = RecallCallback(**IMPORTANCE, importance=ImportanceSettings("gradients"))
    quiet_trainer(callback).fit(Sgd(), loader(0))
    assert len(callback.history) == 2


def test_the_automatic_source_is_adams_state_or_else_gradients():
    for model, source in ((Plain(), "optimizer"), (Sgd(), "gradients")):
        callback = RecallCallback(**IMPORTANCE, importance=ImportanceSettings("auto"))
        quiet_trainer(callback).fit(model, loader(0))
        assert importance_of(callback)._found == source
        assert importance_of(callback).by_name


def test_an_adam_whose_first_step_was_skipped_is_waited_for():
    """As AMP does where the gradients overflow: it has no state yet."""

    class Skips(Plain):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            real = optimizer.optimizer.step
            if batch_idx == 0:
                optimizer.optimizer.step = lambda closure: closure()
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            optimizer.optimizer.step = real

    callback = RecallCallback(**IMPORTANCE)
    quiet_trainer(callback).fit(Skips(), loader(0))
    assert len(callback.history) == 2


def test_the_first_tasks_importance_is_one_and_then_has_mean_one_for_each_task():
    callback, model = RecallCallback(**IMPORTANCE), Plain()
    for task in range(3):
        quiet_trainer(callback).fit(model, loader(task))
        importance = importance_of(callback)
        assert importance.tasks == task + 1
        values = torch.cat([tensor.flatten() for tensor in importance.by_name.values()])
        assert float(values.mean()) == pytest.approx(task + 1, rel=1e-4)
    within, last = [r["coefficient"] for r in callback.history if r["task"] == 0]
    size = 4 / 48  # of four steps
    assert list(within.values()) == pytest.approx([0.1 * size / (1 + 0.1 * size)] * 3)
    assert list(last.values()) == pytest.approx([0.1 / 1.1] * 3)


def test_the_merge_takes_by_importance_of_earlier_tasks_alone():
    class Knows(Spy):
        def look(self, pl_module):
            return weights_of(pl_module), copy.deepcopy(importance_of(self).by_name)

    spy, model = Knows(every=1.0, rule=Importance(scale=2.0, strength=0.5)), Plain()
    for task in range(2):
        quiet_trainer(spy).fit(model, loader(task))
    live, known = spy.before
    for name, now in spy.after[0].items():
        weight = 0.5 * 2 * known[name] / (1 + 2 * known[name])
        expected = live[name] + weight * (spy.snapshots[-1][name] - live[name])
        torch.testing.assert_close(now, expected)


def test_gradients_are_averaged_over_the_last_steps():
    class Records(Plain):
        squares = []

        def on_before_optimizer_step(self, optimizer):
            self.squares.append([p.grad.square().clone() for p in self.parameters()])

    model = Records()
    last_three = ImportanceSettings("gradients", steps=3)
    callback = RecallCallback(**(IMPORTANCE | {"every": 1.0}), importance=last_three)
    quiet_trainer(callback).fit(model, loader(0))
    means = [sum(parts) / 3 for parts in zip(*model.squares[-3:], strict=True)]
    total = sum(float(m.sum()) for m in means) / sum(m.numel() for m in means)
    found = list(importance_of(callback).by_name.values())
    for one, mean in zip(found, means, strict=True):
        torch.testing.assert_close(one, mean / total, rtol=1e-4, atol=1e-6)


def test_importance_that_is_not_finite_is_left_out():
    layer, optimizer, _ = stepped(ADAMS["Adam"])
    importance = ParameterImportance(ImportanceSettings("optimizer"))
    optimizer.state[layer.weight]["exp_avg_sq"].fill_(torch.inf)
    trainer = SimpleNamespace(optimizers=[optimizer])
    with pytest.warns(UserWarning, match="none, zero or not finite"):
        importance.end_task(TaskContext(trainer, layer, None, Structure(), []))
    assert importance.by_name == {}


def test_importance_and_gradients_come_back_from_a_checkpoint():
    callback = RecallCallback(**IMPORTANCE, importance=ImportanceSettings("gradients"))
    quiet_trainer(callback).fit(Plain(), loader(0))
    state = importance_of(callback).state_dict()
    back = ParameterImportance(ImportanceSettings("gradients"))
    back.load_state_dict(copy.deepcopy(state))
    assert back.tasks == 1
    assert all(torch.equal(back.by_name[n], t) for n, t in state["by_name"].items())


@pytest.mark.parametrize("every", [2, 1])
def test_an_optimizer_forgets_the_weights_that_were_merged_and_no_others(every):
    class Watched(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            states = self.optimizers().optimizer.state
            known = {n for n, p in self.named_parameters() if p in states}
            self.known = [*getattr(self, "known", []), known]

    model = Watched()
    model.net[0].requires_grad_(False)
    callback = RecallCallback(**(IMPORTANCE | {"every": every}), optimizer_state="reset")
    quiet_trainer(callback).fit(model, loader(0))
    for batch, known in enumerate(model.known):
        assert bool(known) == (batch % every != 0)
    assert not model.optimizers().optimizer.state
    assert importance_of(callback).tasks == 1


def test_an_optimizer_that_knows_some_weights_only_is_refused_or_gradients_are_averaged():
    class AdamAndSgd(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            first, *others = self.parameters()
            return torch.optim.AdamW([first]), torch.optim.SGD(others, lr=0.01)

    with pytest.raises(MisconfigurationException, match="SGD does not keep of"):
        quiet_trainer(RecallCallback(**IMPORTANCE, importance=ImportanceSettings("optimizer"))).fit(
            AdamAndSgd(), loader(0)
        )
    callback, model = RecallCallback(**IMPORTANCE), AdamAndSgd()
    quiet_trainer(callback).fit(model, loader(0))
    assert set(importance_of(callback).by_name) == {n for n, _ in model.named_parameters()}
