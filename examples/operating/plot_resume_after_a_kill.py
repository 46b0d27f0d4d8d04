"""
Resuming after a kill
=====================

Machines get pre-empted, in the midst of a task as anywhere else. A run that is killed and started
again from its last checkpoint ends with the same weights as one that was left alone, bit for bit,
with the same merges and the same task matrix.
"""

# %%
# The training script, with nothing special in it but a checkpoint every 50 steps and
# ``ckpt_path="last"``, which starts from the last one if there is any. Told a step, it kills itself
# there, as ``kill -9`` would.

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

SCRIPT = """
import json, os, signal, sys
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.data import DigitsStream
from recall_lightning.models import MLP, ClassifierModule

class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if len(sys.argv) > 1 and trainer.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

seed_everything(0)
stream = DigitsStream(scenario="permuted", num_tasks=3, epochs_per_task=4)
recall, monitor = RecallCallback(merge_first_task=False), ForgettingMonitor("val/acc", folder=".")
checkpoints = ModelCheckpoint(dirpath="checkpoints", save_last=True, every_n_train_steps=50)
trainer = Trainer(
    max_epochs=stream.total_epochs, reload_dataloaders_every_n_epochs=1, accelerator="cpu",
    callbacks=[recall, monitor, checkpoints, Kill()],
    logger=False, enable_progress_bar=False, enable_model_summary=False,
)
model = ClassifierModule(MLP([64, 128, 10]), num_classes=10)
trainer.fit(model, datamodule=stream, ckpt_path="last")
trainer.save_checkpoint("end.ckpt", weights_only=True)
json.dump([[m["step"], m["coefficient"]] for m in recall.history], open("merges.json", "w"))
"""
folder = tempfile.TemporaryDirectory()
script = Path(folder.name, "train.py")
script.write_text(SCRIPT)


def run(name, *killed_at):
    """Run the script in a folder, and return its exit code."""
    own = Path(folder.name, name)
    own.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", script, *killed_at]
    return subprocess.run(command, cwd=own, capture_output=True).returncode


# %%
# One run is left alone. The other is killed in the third task, 27 steps behind its last checkpoint,
# and run again. A negative exit code is the signal that ended a process.

print("left alone:", run("alone"))
print("killed:", run("killed", "377"), "and again:", run("killed"))

# %%
# Nothing tells the two ends apart.

ends, matrices, merges = {}, {}, {}
for name in ("alone", "killed"):
    own = Path(folder.name, name)
    ends[name] = torch.load(own / "end.ckpt", weights_only=True)["state_dict"]
    matrices[name] = json.loads((own / "task_matrix.json").read_text())["matrix"]
    merges[name] = json.loads((own / "merges.json").read_text())
folder.cleanup()
same = [torch.equal(weight, ends["killed"][key]) for key, weight in ends["alone"].items()]
print("weights that are the same bit for bit:", sum(same), "of", len(same))
print("the same task matrix:", matrices["alone"] == matrices["killed"])
print("the same merges:", merges["alone"] == merges["killed"])

# %%
# The line is the run that was left alone, the crosses are the one that was killed.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, found), style in zip(merges.items(), ("-", "x"), strict=True):
    for block, colour in zip(found[0][1], ("C0", "C1"), strict=True):
        heights = [coefficient[block] for _, coefficient in found]
        steps = [step for step, _ in found]
        axes.plot(steps, heights, style, color=colour, label=f"{name}: {block}")
axes.axvline(377, color="0.6", linestyle=":")
axes.set(xlabel="optimizer step; killed at the dotted line", ylabel="coefficient of the snapshot")
axes.legend(frameon=False)
