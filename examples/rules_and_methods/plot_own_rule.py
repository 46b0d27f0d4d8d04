"""
A merge rule of your own
========================

A rule says how much of the snapshot every weight takes: a number, or a tensor in its shape. This
one keeps what a task changed most and puts the rest back, as the trimming of TIES does. It
``needs`` nothing that would have to be measured. The weights alone do not tell what earlier tasks
depended on, though, which the default rules have measured.
"""

# %%
# ``coefficients`` is all that a ``MergeRule`` has to have.

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything

from recall_lightning import ForgettingMonitor, MergeRule, RecallCallback
from recall_lightning.data import DigitsStream
from recall_lightning.merging.rules import Uniform
from recall_lightning.models import MLP, ClassifierModule


class LargestChanges(MergeRule):
    """Keeps of every weight the entries that moved furthest, and puts the others back.

    Args:
        share: How many are kept, in (0, 1).
    """

    def __init__(self, share):
        super().__init__()
        self.share = share

    def coefficients(self, inputs):
        """Return 0 where the live weight stays, and 1 where the snapshot comes back."""
        found = {}
        for name, live in inputs.live.items():
            moved = (live - inputs.snapshot[name]).abs()
            back = max(1, round((1 - self.share) * moved.numel()))
            found[name] = (moved <= moved.flatten().kthvalue(back).values).float()
        return found


# %%
# It goes in as an object. Given as ``rule`` alone it merges at a task's end, too; ``every=1.0``
# merges there only.

callbacks = {
    "fine-tuning": [],
    "LargestChanges(0.5)": [
        RecallCallback(every=1.0, rule=LargestChanges(0.5), merge_first_task=False)
    ],
    "LargestChanges(0.2)": [
        RecallCallback(every=1.0, rule=LargestChanges(0.2), merge_first_task=False)
    ],
    "Uniform(0.4)": [RecallCallback(every=1.0, rule=Uniform(0.4), merge_first_task=False)],
    "default rules": [RecallCallback(merge_first_task=False)],
}
summaries = {}
for name, given in callbacks.items():
    seed_everything(0, verbose=False)
    stream = DigitsStream(scenario="permuted", num_tasks=3, epochs_per_task=8)
    monitor = ForgettingMonitor("val/acc")
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        check_val_every_n_epoch=8,
        callbacks=[*given, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ClassifierModule(MLP([64, 128, 10]), num_classes=10), datamodule=stream)
    summaries[name] = monitor.summary()

# %%
# Right and up is better: learned more, and kept more.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, found in summaries.items():
    axes.plot(found["plasticity"], found["average"], "o", markersize=9, label=name)
axes.set(
    xlabel="plasticity: accuracy on each task right after it",
    ylabel="average: accuracy on all tasks at the end",
)
axes.legend(frameon=False)
