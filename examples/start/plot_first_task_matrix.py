"""
A first task matrix
===================

A model of your own learns three tasks, one ``fit`` each: handwritten digits as they are, then with
their pixels in another order, then in a third one. ``ForgettingMonitor`` scores every task after
each and fills the task matrix; ``RecallCallback`` keeps what earlier tasks taught. Both go into the
Trainer, and the LightningModule stays as it is.
"""

# %%
# The tasks: a training loader each, and a validation loader each, of digits that no task trains on.

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from recall_lightning import ForgettingMonitor, RecallCallback

pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))


def digits(task):
    """Return a task's training and held-out digits."""
    chance = torch.Generator().manual_seed(task)
    order = torch.randperm(64, generator=chance) if task else torch.arange(64)
    whole = TensorDataset(pixels[:, order].float() / 16, labels)
    return random_split(whole, [0.75, 0.25], torch.Generator().manual_seed(0))


tasks = [digits(task) for task in range(3)]
train_loaders = [DataLoader(train, batch_size=32, shuffle=True) for train, _ in tasks]
val_loaders = [DataLoader(held_out, batch_size=256) for _, held_out in tasks]

# %%
# The model logs ``val/acc`` for whatever loader it is given. Lightning adds the loader's index.


class Classifier(LightningModule):
    """A small classifier of digits."""

    def __init__(self):
        super().__init__()
        hidden, output = torch.nn.Linear(64, 128), torch.nn.Linear(128, 10)
        self.net = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)

    def forward(self, inputs):
        """Return logits."""
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        """Return the loss."""
        inputs, targets = batch
        return torch.nn.functional.cross_entropy(self(inputs), targets)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Score a batch of the task with this loader."""
        inputs, targets = batch
        accuracy = (self(inputs).argmax(dim=1) == targets).float().mean()
        self.log("val/acc", accuracy, batch_size=len(targets))

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


# %%
# Every ``fit`` is a task, and all of them are validated, always. The model starts from random
# weights, which hold nothing to keep: hence ``merge_first_task=False``.


def train(*callbacks):
    """Train on the tasks one after the other, and return what was measured."""
    seed_everything(0, verbose=False)
    model, monitor = Classifier(), ForgettingMonitor("val/acc")
    for loader in train_loaders:
        trainer = Trainer(
            max_epochs=8,
            callbacks=[*callbacks, monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader, val_loaders)
    return monitor.record


# %%
# Read a row of the matrix as an exam after a task. By fine-tuning the first columns fade.

train().matrix_figure()

# %%
# With it they stay, at little cost on the diagonal.

train(RecallCallback(merge_first_task=False)).matrix_figure()
