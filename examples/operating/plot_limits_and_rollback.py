"""
Alarms and rollback
===================

A model is trained on one delivery of digits after another, and the third is broken: its labels
are mixed up. ``ForgettingMonitor`` knows how much may be forgotten. Where a delivery costs more, it
says so, puts back the weights of before, and goes on with the next.
"""

# %%
# Each delivery shows the digits rotated a little further. Nobody has looked at Wednesday's labels.

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import TensorDataset

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.data import DigitsStream
from recall_lightning.models import MLP, ClassifierModule

digits = DigitsStream(scenario="rotated", num_tasks=4, angle_step=5)
deliveries = [(digits.train_dataset(task), digits.val_dataset(task)) for task in range(4)]
images, labels = deliveries[2][0].tensors
mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
deliveries[2] = (TensorDataset(images, mixed), deliveries[2][1])


def train(*callbacks, **limits):
    """Train on all deliveries, and return the monitor."""
    seed_everything(0, verbose=False)
    names = ["monday", "tuesday", "wednesday", "thursday"]
    stream = TaskStream.from_datasets(deliveries, names=names, epochs_per_task=6, batch_size=32)
    monitor = ForgettingMonitor("val/acc", **limits)
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[*callbacks, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ClassifierModule(MLP([64, 128, 10]), num_classes=10), datamodule=stream)
    for found in monitor.exceeded:
        print(f"ALARM after {found['task']}: {found['name']} {found['value']:.3f}")
    return monitor


# %%
# With a limit alone there is an alarm: on the terminal, as a warning, and in Weights & Biases.

train(limits={"forgetting": 0.1}).record.curves_figure({})

# %%
# With ``on_limit="rollback"`` the weights of before Wednesday come back, and Thursday goes on from
# them. ``"stop"`` would end the fit, and a function of yours decide for itself.

monitor = train(limits={"forgetting": 0.1}, on_limit="rollback")
monitor.record.curves_figure({})

# %%
# The row of the delivery that was rolled back says so.

monitor.record.matrix_figure()

# %%
# With ``RecallCallback`` the broken delivery costs less: it learns what it is given, and keeps what
# it knew. The same limit is there for the day on which that is not enough.

monitor = train(
    RecallCallback(merge_first_task=False), limits={"forgetting": 0.1}, on_limit="rollback"
)
monitor.record.matrix_figure()
