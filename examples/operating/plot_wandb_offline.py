"""
Weights & Biases, offline
=========================

What is logged needs no account: offline a run goes into a file, and ``wandb sync`` sends it when
you like. Here it is read back at once, to see what is in it: every task's score and what was
forgotten against the tasks trained, every merge's coefficients against the step.
"""

# %%
# The callbacks log to whatever logger the Trainer has.

import json
import struct
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import wandb
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from wandb.proto.wandb_internal_pb2 import Record

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import DigitsStream
from recall_lightning.models import MLP, ClassifierModule

SILENT = wandb.Settings(silent=True)
seed_everything(0, verbose=False)
folder = tempfile.TemporaryDirectory()
stream = DigitsStream(scenario="permuted", num_tasks=3, epochs_per_task=6)
trainer = Trainer(
    max_epochs=stream.total_epochs,
    reload_dataloaders_every_n_epochs=1,
    log_every_n_steps=10,
    callbacks=[RecallCallback(merge_first_task=False), ForgettingMonitor("val/acc")],
    logger=WandbLogger(project="digits", save_dir=folder.name, offline=True, settings=SILENT),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(ClassifierModule(MLP([64, 128, 10]), num_classes=10), datamodule=stream)
wandb.teardown()  # ends the run, and returns when all of it is in the file

# %%
# The file is a log in LevelDB's format, of records of Weights & Biases: blocks of 32 KiB, in them
# pieces with a checksum, a length and a kind; a record is one piece or more.


def points(content):
    """Yield what was logged, a dict each."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:  # nothing starts there
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            items, record = Record.FromString(record).history.item, b""
            named = [(item.nested_key, json.loads(item.value_json)) for item in items]
            yield {key[0]: value for key, value in named if len(key) == 1}  # others are of files


(run,) = Path(folder.name).rglob("run-*.wandb")
logged = [point for point in points(run.read_bytes()) if point]
pictures = sum(1 for _ in run.parent.glob("files/media/**/*.png"))
folder.cleanup()
names = sorted({name for point in logged for name in point if not name.startswith("_")})
print(*names, sep="\n")
print("and", pictures, "pictures of the task matrix and of coefficients")

# %%
# Two of the charts that Weights & Biases draws by itself.


def series(across, name):
    """Return a metric and what it is drawn against."""
    found = [(point[across], point[name]) for point in logged if {across, name} <= point.keys()]
    return zip(*found, strict=True)


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for what in ("average", "forgetting", *stream.task_names):
    name = f"continual/{what}"
    left.plot(*series("continual/task", name), marker="o", label=name)
for name in names:
    if name.startswith("recall/coefficient/"):
        right.plot(*series("trainer/global_step", name), marker=".", label=name)
left.set(xlabel="continual/task", xticks=[1, 2, 3])
right.set(xlabel="trainer/global_step")
left.legend(frameon=False)
right.legend(frameon=False)
