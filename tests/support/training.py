"""A user's module, its tasks and a Trainer without trimmings."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Plain(LightningModule):
    """A user's module that knows nothing of us: no forward, its own way to log."""

    def __init__(self, net=None, lr=1e-2):
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
        )
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        accuracy = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val/acc", accuracy, batch_size=len(batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def task_data(task, samples=64):
    """Two classes told apart by one input, another one in every task."""
    generator = torch.Generator().manual_seed(task)
    inputs = torch.randn(samples, 8, generator=generator)
    return TensorDataset(inputs, (inputs[:, task] > 0).long())


def loader(task, samples=64, **kwargs):
    kwargs = {"batch_size": 8, "shuffle": True} | kwargs
    return DataLoader(task_data(task, samples), **kwargs)


def quiet_trainer(*callbacks, **kwargs):
    """A Trainer that writes and shows nothing; whatever else it does is Lightning's default."""
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return Trainer(callbacks=list(callbacks), **(defaults | kwargs))
