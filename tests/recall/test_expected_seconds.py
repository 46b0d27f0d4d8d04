"""What is expected to be done is what is done."""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from recall_lightning import (
    MomentSettings,
    PriorSettings,
    RecallCallback,
)
from recall_lightning.recall.expected_seconds import ExpectedSeconds
from recall_lightning.recall.measured_work import MeasuredWork, Work
from recall_lightning.recall.prepared_merge import PreparedMerge
from tests.support.callbacks import FEW, same, weights_of
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import Plain, loader, quiet_trainer

FEW_BATCHES = MomentSettings(batches=6)


class Writer(LightningModule):
    """Learns to count; what it is run as in training is what writes, too."""

    def __init__(self, net=None):
        super().__init__()
        self.net = net or tiny_llama(vocab_size=32, num_hidden_layers=1)

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def adapted():
    return Writer(get_peft_model(Writer().net, LoraConfig(r=2, target_modules="all-linear")))


def sequences(task):
    rows = (torch.arange(12) + torch.arange(64)[:, None]) * (task + 1) % 32
    return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=8)


class Normalised(Plain):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))


class Counted(RecallCallback):
    """Counts what is done beside training: passes in evaluation mode, and merges; by task."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.done = self.done if hasattr(self, "done") else []
        self.done.append({"forward": 0, "backward": 0, "merges": 0})
        net = pl_module.net.get_base_model() if hasattr(pl_module.net, "peft_config") else None
        self.handle = (net or pl_module.net).register_forward_pre_hook(self.see)

    def see(self, net, args):
        if not net.training or getattr(self, "recalibrates", False):
            self.done[-1]["backward" if torch.is_grad_enabled() else "forward"] += 1

    def teardown(self, trainer, pl_module, stage):
        self.handle.remove()


@pytest.fixture(autouse=True)
def counted_merges(monkeypatch):
    written, Counted.current = PreparedMerge.write, None

    def write(self, *args, **kwargs):
        if Counted.current is not None:
            Counted.current.done[-1]["merges"] += 1
        return written(self, *args, **kwargs)

    monkeypatch.setattr(PreparedMerge, "write", write)


SETTINGS = {
    "defaults": (Plain, loader, {}),
    "network from random weights": (Plain, loader, {"merge_first_task": False, "every": 3}),
    "measured only": (Plain, loader, {"plasticity": None, "end_rule": "subspace", "every": 0.25}),
    "no merge at the end": (Plain, loader, {"end_rule": "never", "every": 3}),
    "without curvature": (Plain, loader, {"rule": "importance", "every": 2}),
    "similarity": (Plain, loader, {"rule": "rbf", "samples": FEW, "every": 2, "moments": None}),
    "two snapshots": (
        *(Plain, loader),
        {"rule": "rbf", "samples": FEW, "every": 2, "moments": None, "snapshots": 2},
    ),
    "prior as given": (Plain, loader, {"prior": list(loader(7))[:3]}),
    "language model": (Writer, sequences, {"prior": PriorSettings(sequences=70, tokens=40)}),
    "adapter": (
        *(adapted, sequences),
        {"moments": MomentSettings(batches=6, labels=200), "every": 3},
    ),
    "generated": (
        *(Writer, sequences),
        {"moments": MomentSettings(batches=6, source="generated")},
    ),
}


def counts(work):
    return {"forward": work.forward, "backward": work.backward, "merges": work.merges}


@pytest.mark.parametrize(("make", "load", "settings"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore")
def test_a_task_takes_as_many_passes_and_merges_as_are_counted(make, load, settings):
    torch.manual_seed(0)
    needs_moments = settings.get("rule") != "importance"
    settings = ({"moments": FEW_BATCHES} if needs_moments else {}) | settings
    model, callback = make(), Counted(**settings)
    expected = callback.expected_seconds(model, next(iter(load(0))), steps=48)
    Counted.current = callback
    trainer = quiet_trainer(callback, max_epochs=0)
    for task in range(2):
        trainer.fit_loop.max_epochs += 6
        quiet_trainer(callback, max_epochs=6).fit(model, load(task))
    first, second = callback.done
    print(expected, [len(r.get("front", [])) for r in callback.history])
    assert second == counts(expected.together)
    if callback.merge_first_task and not callback.snapshots[1:]:
        assert first == counts(sum(expected.run.values(), expected.together))
