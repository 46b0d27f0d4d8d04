"""What is expected to be done is what is done."""

import re
from collections import Counter
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from recall_lightning import MomentSettings, PriorSettings, RecallCallback
from recall_lightning.recall.expected_seconds import ExpectedSeconds
from recall_lightning.recall.measured_work import Work
from recall_lightning.recall.prepared_merge import PreparedMerge
from tests.support.callbacks import FEW, same, weights_of
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import Plain, loader, quiet_trainer

FEW_BATCHES = MomentSettings(batches=6)


class Writer(LightningModule):
    """A language model that learns to count."""

    def __init__(self):
        super().__init__()
        self.net = tiny_llama(vocab_size=32, num_hidden_layers=1)

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def adapted():
    """One of which a LoRA adapter is trained alone."""
    writer = Writer()
    writer.net = get_peft_model(writer.net, LoraConfig(r=2, target_modules="all-linear"))
    return writer


def sequences(task, tokens=12):
    rows = (torch.arange(tokens) + torch.arange(64)[:, None]) * (task + 1) % 32
    return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=8)


def batch_normalised():
    return Plain(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))


SETTINGS = {
    "defaults": (Plain, loader, {"moments": FEW_BATCHES}),
    "network from random weights": (
        *(Plain, loader),
        {"moments": FEW_BATCHES, "merge_first_task": False, "every": 3},
    ),
    "a task of few batches": (Plain, loader, {"moments": MomentSettings(batches=100)}),
    "no share of the gain": (
        *(Plain, loader),
        {"moments": FEW_BATCHES, "plasticity": None, "end_rule": "subspace", "every": 0.25},
    ),
    "no merge at the end": (
        *(Plain, loader),
        {"moments": FEW_BATCHES, "end_rule": "never", "every": 3},
    ),
    "more labels than are compared": (
        *(Writer, partial(sequences, tokens=40)),
        {"moments": FEW_BATCHES, "end_rule": "never", "every": 3, "merge_first_task": False},
    ),
    "without curvature": (Plain, loader, {"rule": "subspace", "moments": FEW_BATCHES}),
    "importance alone": (Plain, loader, {"rule": "importance", "every": 2}),
    "similarity": (Plain, loader, {"rule": "rbf", "samples": FEW, "every": 2}),
    "two snapshots": (
        *(Plain, loader),
        {"rule": "rbf", "samples": FEW, "every": 2, "snapshots": 2},
    ),
    "buffers measured anew": (
        *(batch_normalised, loader),
        {"moments": FEW_BATCHES, "buffers": "recalibrate", "every": 5},
    ),
    "prior as given": (
        *(Plain, loader),
        {"moments": FEW_BATCHES, "prior": list(loader(7))[:3]},
    ),
    "language model": (
        *(Writer, sequences),
        {"moments": FEW_BATCHES, "prior": PriorSettings(sequences=70, tokens=40)},
    ),
    "adapter": (
        *(adapted, sequences),
        {"moments": MomentSettings(batches=6, labels=200), "every": 3},
    ),
    "tasks written down": (
        *(Writer, sequences),
        {"moments": MomentSettings(batches=6, source="generated")},
    ),
    "no batch kept": (
        *(Writer, sequences),
        {
            "moments": MomentSettings(batches=6, source="generated"),
            "end_rule": None,
            "plasticity": None,
        },
    ),
}


@pytest.fixture
def done(monkeypatch):
    """Counts passes in evaluation mode, and merges that are written."""
    counted, write = Counter(), PreparedMerge.write

    def written(self, *args, **kwargs):
        counted["merges"] += 1
        return write(self, *args, **kwargs)

    monkeypatch.setattr(PreparedMerge, "write", written)
    return counted


def fitted(callback, model, data, epochs, done):
    """What one fit, a task, does in evaluation mode."""

    def see(net, args):
        if not net.training:
            done["backward" if torch.is_grad_enabled() else "forward"] += 1

    done.clear()
    net = model.net.get_base_model() if isinstance(model.net, PeftModel) else model.net
    handle = net.register_forward_pre_hook(see)
    quiet_trainer(callback, max_epochs=epochs).fit(model, data)
    handle.remove()
    return Work(done["forward"], done["backward"], done["merges"])


def counted(work):
    return Work(work.forward, work.backward, work.merges)


@pytest.mark.parametrize(("make", "load", "settings"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore")
def test_tasks_take_as_many_passes_and_merges_as_were_counted(make, load, settings, done):
    torch.manual_seed(0)
    model, callback = make(), RecallCallback(**settings)
    expected = callback.expected_seconds(model, next(iter(load(0))), steps=48)
    first, second = (fitted(callback, model, load(task), 6, done) for task in range(2))
    assert second == counted(expected.together)
    if callback.merge_first_task and len(callback.snapshots) == 1:
        fitted_head = expected.task.get("last layer", Work())  # to tasks before, of which is none
        rest = [each for each in expected.task.values() if each is not fitted_head]
        assert first == counted(sum(expected.run.values(), sum(rest, Work())))


def test_estimates_in_the_course_of_a_task_are_counted(done):
    model, callback = (
        Plain(),
        RecallCallback(merge_first_task=False, moments=FEW_BATCHES, every=1.0),
    )
    fitted(callback, model, loader(0), 1, done)
    expected = callback.expected_seconds(model, next(iter(loader(0))), steps=408)
    assert counted(expected.task["estimates"]) == Work(forward=2)
    assert fitted(callback, model, loader(1), 51, done) == counted(expected.together)


def test_a_policy_of_the_users_own_is_counted():
    class Thrice(RecallCallback):
        def should_merge(self, step_in_task, task_steps):
            return step_in_task in (1, 5, 7)

    model, batch = Plain(), next(iter(loader(0)))
    expected = Thrice(moments=FEW_BATCHES).expected_seconds(model, batch, steps=8)
    assert expected.together.merges == 3


@pytest.mark.parametrize("make", [Plain, batch_normalised, adapted])
@pytest.mark.parametrize("settings", [{}, {"rule": "rbf", "samples": FEW}])
def test_asking_leaves_model_and_random_state_as_they_were(make, settings):
    model, load = make().train(), sequences if make is adapted else loader
    model.net[-1:].eval() if make is not adapted else model.net.base_model.eval()
    modes = [child.training for child in model.modules()]
    batch, before, state = next(iter(load(0))), weights_of(model), torch.get_rng_state()
    RecallCallback(**settings).expected_seconds(model, batch, steps=20)
    assert same(before, weights_of(model))
    assert torch.equal(state, torch.get_rng_state())
    assert [child.training for child in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())


def test_asking_in_the_midst_of_a_run_leaves_the_run_as_it_was():
    class Asks(RecallCallback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self.expected_seconds(pl_module, batch, steps=8)

    found = []
    for kind in (RecallCallback, Asks):
        torch.manual_seed(0)
        model = Plain()
        quiet_trainer(kind(moments=FEW_BATCHES)).fit(model, loader(0))
        found.append(weights_of(model))
    assert same(*found)


def test_the_seconds_are_those_of_what_is_done():
    model, batch = Plain(), next(iter(loader(0)))
    short, long = (
        RecallCallback(rule="importance", every=1).expected_seconds(model, batch, steps=steps)
        for steps in (10, 2000)
    )
    assert 0 < short.together.seconds < long.together.seconds
    assert 0 < short.training_seconds < long.training_seconds
    assert short.share == short.together.seconds / short.training_seconds


def test_the_table_tells_what_is_done_for_what_and_once_a_run():
    task = {"moments of the task": Work(0, 32, 0, 1.5), "merge at the end": Work(40, 0, 8, 0.5)}
    run = {"prior, written itself": Work(128, 16, 0, 3.0)}
    table = str(ExpectedSeconds(1000, task, run, training_seconds=8.0))
    assert re.sub(r" +", " ", table).splitlines() == [
        "a task of 1000 steps forward backward merges seconds",
        "moments of the task 0 32 0 1.500",
        "merge at the end 40 0 8 0.500",
        "together 40 32 8 2.000",
        "its training 0 1000 0 8.000",
        "together / training 25.0 %",
        "",
        "once a run, on top forward backward merges seconds",
        "prior, written itself 128 16 0 3.000",
    ]
    assert {len(line) for line in table.splitlines() if line} == {64}


@pytest.mark.parametrize("steps", [0, -3, 2.5, True])
def test_steps_that_are_no_count_are_refused(steps):
    with pytest.raises(MisconfigurationException, match=f"steps={steps} must be an integer of 1"):
        RecallCallback().expected_seconds(Plain(), next(iter(loader(0))), steps)


def test_a_model_that_nothing_can_be_trained_of_is_refused():
    class Decided(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(1)

    model, batch = nn.Sequential(Decided(8, 2)), next(iter(loader(0)))
    with pytest.raises(MisconfigurationException, match="Sequential returns has no gradient"):
        RecallCallback(rule="importance").expected_seconds(model, batch, steps=8)
