"""
A head that grows with its classes
==================================

Digits come two classes at a time, and the classifier gets two more outputs for each pair, in the
module's own ``on_train_epoch_start``. Fine-tuning then calls everything by the newest names.
``RecallCallback`` merges the rows that a head had and leaves new ones to training. Nothing holds
new rows back, so a head that has all classes from the start forgets less: the third run.
"""

# %%
# The whole stream is one ``fit``: the datamodule tells which task an epoch is of.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import DigitsStream


class GrowingClassifier(LightningModule):
    """A classifier of at least as many classes as it has seen."""

    def __init__(self, classes=2):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(128, classes)

    def forward(self, images):
        """Return logits of the classes so far."""
        return self.head(self.body(images))

    def on_train_epoch_start(self):
        """Add outputs when a task starts; the optimizer is made anew for them."""
        classes = 2 * (self.trainer.datamodule.task_at(self.current_epoch) + 1)
        old = self.head
        if classes > old.out_features:
            self.head = torch.nn.Linear(128, classes, device=self.device)
            with torch.no_grad():
                self.head.weight[: old.out_features] = old.weight
                self.head.bias[: old.out_features] = old.bias
            self.trainer.strategy.setup_optimizers(self.trainer)

    def training_step(self, batch, batch_idx):
        """Return the loss."""
        images, targets = batch
        return torch.nn.functional.cross_entropy(self(images), targets)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        """Score a batch; a class that has no output yet is never right."""
        images, targets = batch
        right = self(images).argmax(dim=1) == targets
        self.log("val/acc", right.float().mean(), batch_size=len(targets))

    def configure_optimizers(self):
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(model, *callbacks):
    """Train on all classes, two at a time, and return what was measured."""
    stream = DigitsStream(scenario="split", num_tasks=5, epochs_per_task=8)
    monitor = ForgettingMonitor("val/acc")
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[*callbacks, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=stream)
    return monitor.record


# %%
# Each pair of classes is scored after every task.

records = {}
for name, classes, callbacks in (
    ("fine-tuning, growing head", 2, []),
    ("RECALL, growing head", 2, [RecallCallback(merge_first_task=False)]),
    ("RECALL, all outputs from the start", 10, [RecallCallback(merge_first_task=False)]),
):
    seed_everything(0, verbose=False)
    records[name] = train(GrowingClassifier(classes), *callbacks)

# %%
# The average over the classes seen so far.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, record in records.items():
    average = [sum(row[: task + 1]) / (task + 1) for task, row in enumerate(record.matrix)]
    axes.plot(range(2, 11, 2), average, marker="o", label=name)
axes.set(xlabel="classes seen so far", ylabel="accuracy on all of them", ylim=(0, 1.02))
axes.legend(frameon=False)
