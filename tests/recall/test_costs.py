"""What is expected to be held is what is held."""

from collections.abc import Mapping

import pytest
import torch
from lightning.pytorch import LightningModule
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from recall_lightning import (
    ImportanceSettings,
    MomentSettings,
    RecallCallback,
    SnapshotSettings,
)
from recall_lightning.merging.coefficients import kronecker
from recall_lightning.recall.plasticity import MeasuredPlasticity
from recall_lightning.recall.statistics.moments import MapMoments
from recall_lightning.weights.snapshot_file import FileSnapshot
from tests.support.callbacks import FEW, same, statistic, weights_of
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import Plain, loader, quiet_trainer


class Writer(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny_llama(vocab_size=32, num_hidden_layers=2, intermediate_size=24)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def sequences(task):
    rows = torch.randint(32, (64, 12), generator=torch.Generator().manual_seed(task))
    return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=8)


def wide():
    """One of whose sides is wider than is kept as a matrix."""
    return Plain(nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 16), nn.Linear(16, 2)))


def adapted():
    """A language model of which a LoRA adapter is trained alone."""
    writer = Writer()
    writer.model = get_peft_model(writer.model, LoraConfig(r=2, target_modules="all-linear"))
    return writer


KINDS = {
    "network": (wide, loader),
    "language model": (Writer, sequences),
    "adapter": (adapted, sequences),
}


def tensor_bytes(held):
    """Count the bytes of tensors, each memory once, in nested mappings and sequences."""
    found, pending = {}, list(held)
    while pending:
        each = pending.pop()
        if isinstance(each, torch.Tensor):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(each, Mapping):
            pending += each.values()
        elif isinstance(each, list | tuple):
            pending += each
    return sum(found.values())


class Held(RecallCallback):
    """Looks at what it holds in the midst of its third task, and gains as it ends."""

    found: Mapping[str, int] = {}

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.task == 2 and self.step_in_task == 6:
            self.found = {what: tensor_bytes([held]) for what, held in self.held().items()}

    def held(self):
        in_memory = [each for each in self.snapshots if not isinstance(each, FileSnapshot)]
        found = {"snapshots": [dict(each) for each in in_memory]}
        if (importance := statistic(self, "importance")) is not None:
            found["importance"] = importance.by_name
            if importance.source == "gradients":
                found["squared gradients"] = importance._gradients.mean()
        if (recent := statistic(self, "recent_batches")) is not None:
            found["last batches"] = recent.batches
        if (samples := statistic(self, "samples")) is not None:
            found["typical samples"] = samples._typical + samples._candidates
            found["their states"] = samples.snapshot_states
        if (measured := statistic(self, "moments")) is not None:
            moments = set().union(measured.known.inputs.values(), measured.known.outputs.values())
            bases = [basis for one in moments for basis in kronecker._BASES.get(one, {}).values()]
            found["moments"] = [one.state_dict() for one in moments]
            found["eigenvectors"] = [
                [basis.values, basis.into] for basis in bases if basis.into is not None
            ]
        if (heads := statistic(self, "head_inputs")) is not None and heads.tasks:
            found["inputs of last layer"] = [heads.tasks[0].state_dict()]
        return found


SETTINGS = {
    "defaults": {},
    "gradients": {"importance": ImportanceSettings("gradients", steps=4)},
    "in a file": {"merge_first_task": False, "snapshots": SnapshotSettings(to="file")},
    "low rank": {"every": 2, "moments": MomentSettings(batches=4, width=10, rank=2)},
    "typical samples": {
        "rule": "rbf",
        "samples": FEW,
        "snapshots": 2,
        "moments": None,
        "every": 2,
    },
    "without curvature": {"rule": "importance", "end_rule": "subspace", "every": 3},
}


def fitted(kind, settings, folder):
    """A callback after three tasks, and what it expected."""
    make, load = KINDS[kind]
    torch.manual_seed(0)
    settings = {"moments": MomentSettings(batches=4)} | settings
    model, callback = make(), Held(**settings)
    expected = callback.expected_memory(model, next(iter(load(0))))
    for task in range(3):
        quiet_trainer(callback, default_root_dir=folder).fit(model, load(task))
    return callback, expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_is_held_in_the_midst_of_a_task_was_expected(kind, settings, tmp_path):
    callback, expected = fitted(kind, settings, tmp_path)
    bases = {"eigenvectors": 0} if "moments" in expected.training else {}
    assert callback.found == bases | expected.training
    assert sum(callback.found.values()) > 4_000


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tasks_end_adds_was_expected(kind, tmp_path, monkeypatch):
    seen = {}

    def watched(owner, name, what, tensors_of):
        original = getattr(owner, name)

        def method(self, *args, **kwargs):
            made = original(self, *args, **kwargs)
            seen[what] = tensor_bytes(tensors_of(args, made))
            return made

        monkeypatch.setattr(owner, name, method)

    watched(MeasuredPlasticity, "merge", "live weights", lambda args, _: [args[2]])
    watched(
        MapMoments,
        "measure",
        "moments of the task",
        lambda _, made: [m.state_dict() for m in {*made.inputs.values(), *made.outputs.values()}],
    )
    _, expected = fitted(kind, {"plasticity": 0.9}, tmp_path)
    assert seen == expected.at_task_end


@pytest.mark.filterwarnings("ignore")
def test_what_is_held_to_notice_changes_was_expected():
    class Watched(RecallCallback):
        found: Mapping[str, int] = {}

        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            if self.step_in_task == 48:
                recent, weights = statistic(self, "recent_batches"), self._drift._weights
                self.found = {
                    "earlier weights": tensor_bytes([dict(weights._earlier)]),
                    "both kinds of batches": tensor_bytes(list(recent._kept)),
                }

    model, callback = wide(), Watched(boundaries="drift", moments=MomentSettings(batches=4))
    expected = callback.expected_memory(model, next(iter(loader(0)))).training
    quiet_trainer(callback, max_epochs=7).fit(model, loader(0))
    assert callback.found == {
        "earlier weights": expected["earlier weights"],
        "both kinds of batches": expected["last batches"] + expected["batches since those"],
    }


def test_asking_leaves_model_and_random_state_as_they_were():
    model, batch = wide().train(), next(iter(loader(0)))
    before, state = weights_of(model), torch.get_rng_state()
    RecallCallback().expected_memory(model, batch)
    assert same(before, weights_of(model))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
