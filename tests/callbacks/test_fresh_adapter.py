import math

import peft
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning.callbacks import FreshAdapter


class Adapted(LightningModule):
    """A linear layer that is frozen, with an adapter."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.Sequential(torch.nn.Linear(4, 4))
        self.model = peft.get_peft_model(layers, peft.LoraConfig(r=2, target_modules=["0"]))
        self.lora = self.model.base_model.model[0]

    def training_step(self, batch, batch_idx):
        return (self.model(batch[0]) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=4)


class BeforeAndAfter(FreshAdapter):
    """Keeps what the model puts out, its base and its optimizer's state around a task's end."""

    def on_task_end(self, trainer, pl_module, task):
        self.inputs = torch.randn(8, 4)
        self.before, self.base = pl_module.model(self.inputs), weight_of(pl_module)
        self.had_state = len(trainer.optimizers[0].state)
        super().on_task_end(trainer, pl_module, task)
        self.after, self.has_state = pl_module.model(self.inputs), len(trainer.optimizers[0].state)


def weight_of(model):
    return model.lora.base_layer.weight.detach().clone()


def fit(model, callback, root):
    Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", default_root_dir=root).fit(model)


def test_the_model_stays_the_function_that_it_was(tmp_path):
    callback, model = BeforeAndAfter(), Adapted()
    fit(model, callback, tmp_path)
    torch.testing.assert_close(callback.after, callback.before)
    assert not torch.equal(weight_of(model), callback.base)


def test_the_next_adapter_adds_nothing_and_can_learn(tmp_path):
    model = Adapted()
    fit(model, FreshAdapter(), tmp_path)
    assert not model.lora.lora_B["default"].weight.any()
    assert model.lora.lora_A["default"].weight.any()


def test_the_optimizer_forgets_the_old_adapter(tmp_path):
    callback = BeforeAndAfter()
    fit(Adapted(), callback, tmp_path)
    assert (callback.had_state, callback.has_state) == (2, 0)


def test_an_update_that_is_not_finite_stops_before_anything_is_changed(tmp_path):
    class Breaks(FreshAdapter):
        def on_task_end(self, trainer, pl_module, task):
            pl_module.lora.lora_B["default"].weight.data.fill_(math.nan)
            self.base = weight_of(pl_module)
            super().on_task_end(trainer, pl_module, task)

    callback, model = Breaks(), Adapted()
    with pytest.raises(MisconfigurationException, match=r"FreshAdapter.*must be finite"):
        fit(model, callback, tmp_path)
    assert torch.equal(weight_of(model), callback.base)
