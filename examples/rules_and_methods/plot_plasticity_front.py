"""
Plasticity, the front, and choosing again
=========================================

A model that knows digits learns them upside down, and ``RecallCallback`` merges back so much of the
old as leaves 95 % of what was gained. It has tried other merges on the way: the front. Another
point of it takes no training and no data, but the checkpoint alone.
"""

# %%
# First the model learns digits as they are.

import copy
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader

from recall_lightning import RecallCallback
from recall_lightning.cli.main import main as recall_lightning
from recall_lightning.data import DigitsStream
from recall_lightning.models import MLP, ClassifierModule
from recall_lightning.recall.records import front_figure

seed_everything(0, verbose=False)
digits = DigitsStream(scenario="rotated", num_tasks=2, angle_step=180)
train_loaders = [DataLoader(digits.train_dataset(t), 32, shuffle=True) for t in range(2)]
val_loaders = [DataLoader(digits.val_dataset(t), 256) for t in range(2)]


def trainer(*callbacks):
    """Return a Trainer that leaves nothing behind."""
    return Trainer(
        max_epochs=8,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


model = ClassifierModule(MLP([64, 128, 10]), num_classes=10)
trainer().fit(model, train_loaders[0])

# %%
# The new task, by fine-tuning and with RECALL. ``keep_live`` has a checkpoint from the task's end
# hold what the merge was made from. ``prior`` is what the model is to go on knowing: without it the
# task's own pictures would stand in.

plain = copy.deepcopy(model)
trainer().fit(plain, train_loaders[1])

recall = RecallCallback(prior=train_loaders[0], keep_live=True)
recall_trainer = trainer(recall)
recall_trainer.fit(model, train_loaders[1])
folder = tempfile.TemporaryDirectory()
last = f"{folder.name}/last.ckpt"
recall_trainer.save_checkpoint(last)

# %%
# The merges that were tried, from the live weights to the snapshot, and the one that was made.

front_figure(recall.history[-1], "digits upside down")

# %%
# Four others, as ``recall-lightning retune last.ckpt --plasticity … --out …`` makes them.

shares = ["0.5", "0.8", "0.9", "0.99"]
recall_lightning(["retune", last, "--plasticity", *shares, "--out", f"{folder.name}/retuned"])

# %%
# What they know of both tasks, on digits that were held out. Right and up is better.


def scores(module):
    """Return the accuracy on the old and on the new task."""
    found = trainer().validate(module, val_loaders, verbose=False)
    return [found[task][f"val/acc/dataloader_idx_{task}"] for task in range(2)]


points = {"fine-tuning": scores(plain), "plasticity=0.95, as trained": scores(model)}
for path in sorted(Path(folder.name, "retuned").iterdir()):
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    points[path.stem.removeprefix("last-")] = scores(model)
folder.cleanup()

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, (old, new) in points.items():
    axes.plot(old, new, "o", markersize=9, label=name)
axes.set(xlabel="accuracy on digits upright: known before", ylabel="upside down: learned")
axes.legend(frameon=False)
