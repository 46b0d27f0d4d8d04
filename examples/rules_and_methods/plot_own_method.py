"""
A method of your own
====================

``TaskAwareCallback`` says when a task starts and ends, wherever the answer comes from: a
datamodule, ``task_epochs``, or one ``fit`` a task. A baseline to compare with is then a few lines.
This one makes the weights the mean of what they were after each task: after the second task half of
its change stays, after the third a third.
"""

# %%
# ``self.task`` counts from 0. A task ends with its last batch, before that epoch's validation, so
# that scores are of the averaged weights.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything

from recall_lightning import ForgettingMonitor, RecallCallback, TaskAwareCallback
from recall_lightning.data import DigitsStream
from recall_lightning.methods import ElasticWeightConsolidation
from recall_lightning.models import MLP, ClassifierModule


class MeanOverTasks(TaskAwareCallback):
    """Makes the weights, at each task's end, the mean of those after all tasks so far."""

    def on_task_start(self, trainer, pl_module, task):
        """Copy the weights."""
        self.start = [weight.detach().clone() for weight in pl_module.parameters()]

    @torch.no_grad()
    def on_task_end(self, trainer, pl_module, task):
        """Go one part in as many as there were tasks from the copy to the live weights."""
        for weight, before in zip(pl_module.parameters(), self.start, strict=True):
            weight.copy_(before.lerp(weight, 1 / (task + 1)))


# %%
# The same stream, first weights and order for all; EWC and RECALL with their defaults.


def train(*callbacks):
    """Train on four orders of the digits' pixels, and return what was measured."""
    seed_everything(0, verbose=False)
    stream = DigitsStream(scenario="permuted", num_tasks=4, epochs_per_task=8)
    monitor = ForgettingMonitor("val/acc")
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=8,
        callbacks=[*callbacks, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ClassifierModule(MLP([64, 128, 10]), num_classes=10), datamodule=stream)
    return monitor.record


records = {
    "fine-tuning": train(),
    "MeanOverTasks": train(MeanOverTasks()),
    "EWC": train(ElasticWeightConsolidation(from_first_task=False)),
    "RECALL": train(RecallCallback(merge_first_task=False)),
}

# %%
# The first task, after each of the four.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, record in records.items():
    axes.plot(range(1, 5), [row[0] for row in record.matrix], marker="o", label=name)
axes.set(xlabel="tasks trained", ylabel="accuracy on the first task", ylim=(0, 1.02))
axes.set_xticks(range(1, 5))
axes.legend(frameon=False)

# %%
# What a method keeps it may pay for in what it learns.

for name, record in records.items():
    found = record.summary()
    print(f"{name:14} average {found['average']:.3f}  plasticity {found['plasticity']:.3f}")
