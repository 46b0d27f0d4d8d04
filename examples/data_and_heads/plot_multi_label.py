"""
Several labels a sample
=======================

Is a digit even, is it prime, is there a loop in it, is it above four? Four answers a picture, yes
or no each, on pictures as they are, then upside down, then mirrored. With a binary cross-entropy
``RecallCallback`` takes each output for a yes or no of its own. One metric object of torchmetrics
serves the loaders of all tasks, as the monitor has it start anew with each.
"""

# %%
# The questions are labels, float, in the outputs' shape.

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset, random_split
from torchmetrics.classification import MultilabelF1Score

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream

QUESTIONS = {"even": "02468", "prime": "2357", "loop": "0689", "above four": "56789"}
images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = images.view(-1, 8, 8).float() / 16
answers = torch.tensor([[str(int(d)) in yes for yes in QUESTIONS.values()] for d in digits]).float()
VIEWS = {"upright": images, "upside down": images.flip(1), "mirrored": images.flip(2)}
tasks = []
for view in VIEWS.values():
    chance = torch.Generator().manual_seed(0)  # the same digits are held out of every view
    train, held_out = random_split(TensorDataset(view, answers), [0.75, 0.25], chance)
    tasks.append((train, held_out))


class Answers(LightningModule):
    """A small network with a logit a question."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(64, 128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, len(QUESTIONS)),
        )
        self.f1 = MultilabelF1Score(num_labels=len(QUESTIONS))

    def forward(self, pictures):
        """Return logits."""
        return self.net(pictures)

    def training_step(self, batch, batch_idx):
        """Return the loss."""
        pictures, targets = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(self(pictures), targets)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Score a batch."""
        pictures, targets = batch
        self.f1(self(pictures), targets.int())
        self.log("val/f1", self.f1, batch_size=len(targets))

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def run(*callbacks):
    """Train on one view of the digits after the other, and return what was measured."""
    seed_everything(0, verbose=False)
    stream = TaskStream.from_datasets(tasks, names=list(VIEWS), epochs_per_task=8, batch_size=32)
    monitor = ForgettingMonitor("val/f1")
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[*callbacks, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Answers(), datamodule=stream)
    return monitor.record


# %%
# F1 over the questions of each view, over training: first fine-tuning, then RECALL.

run().curves_figure({})

# %%
recall = RecallCallback(merge_first_task=False)
run(recall).curves_figure({"merge": [merge["step"] for merge in recall.history]})
