"""
Boundaries that nobody announces
================================

Data come in one long stream, and at some point they are others: the digits' pixels in a new
order. With ``boundaries="drift"`` ``RecallCallback`` is not told. It watches the training loss,
ends a task where that rises for good, with the weights of before the rise, and starts the next. It
takes the package ``river``, of the extra ``drift``.
"""

# %%
# The datamodule knows where tasks start, and ``ForgettingMonitor`` asks it, to score them.
# ``RecallCallback`` does not. As it cannot know how long a task will be, ``every`` counts steps.

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import DigitsStream
from recall_lightning.models import MLP, ClassifierModule


def train(*callbacks):
    """Train on three orders of the pixels, one after the other, and return what was measured."""
    seed_everything(0, verbose=False)
    stream = DigitsStream(scenario="permuted", num_tasks=3, epochs_per_task=8)
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
    trainer.fit(ClassifierModule(MLP([64, 128, 10]), num_classes=10), datamodule=stream)
    return monitor.record


recall = RecallCallback(boundaries="drift", merge_first_task=False)
records = {
    "fine-tuning": train(),
    "RECALL, boundaries found": train(recall),
    "RECALL, boundaries known": train(RecallCallback(merge_first_task=False)),
}

# %%
# What was found, and where tasks did start.

for change in recall.changes:
    print(f"noticed at step {change['step']}, began at {change['began']}: {change['signal']}")
print("tasks started at", *[step for step, _ in records["fine-tuning"].boundaries])

# %%
# The scores over training, with the boundaries that were found.

records["RECALL, boundaries found"].curves_figure(recall.marked_steps)

# %%
# Accuracy on all tasks so far, after each.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, record in records.items():
    average = [sum(row[: task + 1]) / (task + 1) for task, row in enumerate(record.matrix)]
    axes.plot(range(1, 4), average, marker="o", label=name)
axes.set(xlabel="tasks trained", ylabel="accuracy on them", ylim=(0, 1.02), xticks=[1, 2, 3])
axes.legend(frameon=False)
