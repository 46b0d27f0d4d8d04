"""
Regression
==========

A curve is learned piece by piece, left to right, each piece a task. With a squared error
``RecallCallback`` takes what the model predicts for the mean of a normal distribution, and keeps
the pieces that it no longer sees. No argument says so: the loss of the first step tells.
"""

# %%
# Three pieces of one curve, with noise, and a task each.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import TensorDataset

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.models import MLP

EDGES = [(-3, -1), (-1, 1), (1, 3)]


def curve(inputs):
    """Return what is to be learned."""
    return torch.sin(2 * inputs) + 0.3 * inputs


def piece(task, samples, seed):
    """Return noisy points of a piece, (samples, 1) each."""
    low, high = EDGES[task]
    chance = torch.Generator().manual_seed(10 * task + seed)
    inputs = low + (high - low) * torch.rand(samples, 1, generator=chance)
    return TensorDataset(inputs, curve(inputs) + 0.1 * torch.randn(samples, 1, generator=chance))


class Regressor(LightningModule):
    """A small network from a number to a number."""

    def __init__(self):
        super().__init__()
        self.net = MLP([1, 64, 64, 1], activation=torch.nn.Tanh)

    def forward(self, inputs):
        """Return the predictions."""
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        """Return the loss."""
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self(inputs), targets)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Score a batch."""
        inputs, targets = batch
        error = torch.nn.functional.mse_loss(self(inputs), targets)
        self.log("val/mse", error, batch_size=len(targets))

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=6e-3)


def train(*callbacks):
    """Train piece by piece, and return the model."""
    seed_everything(0, verbose=False)
    stream = TaskStream.from_datasets(
        [(piece(task, 512, seed=0), piece(task, 128, seed=1)) for task in range(3)],
        names=["left", "middle", "right"],
        epochs_per_task=25,
        batch_size=32,
    )
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=25,
        callbacks=[*callbacks, ForgettingMonitor("val/mse", mode="min")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Regressor()
    trainer.fit(model, datamodule=stream)
    return model


models = {"fine-tuning": train(), "RECALL": train(RecallCallback(merge_first_task=False))}

# %%
# After the right piece, fine-tuning has forgotten the left.

inputs = torch.linspace(-3, 3, 301).unsqueeze(1)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(inputs, curve(inputs), color="0.6", linewidth=4, label="to be learned")
for name, model in models.items():
    axes.plot(inputs, model(inputs).detach(), label=name)
axes.vlines([-1, 1], -2, 2, color="0.8", linestyle=":")
axes.set(xlabel="input; pieces were trained from left to right", ylabel="output", ylim=(-2, 2))
axes.legend(frameon=False)
