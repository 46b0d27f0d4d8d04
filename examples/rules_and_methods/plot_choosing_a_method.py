"""
Choosing between methods
========================

``recall-lightning compare`` runs every method with every seed in a process of its own, on the same
data, order and first weights, and writes tables, a figure, and ``results.csv``. Here three methods
on two classes of digits at a time, one seed, from a recipe that is written on the spot.
"""

# %%
# A recipe says what is trained; ``--sweep`` adds a row for each value of a method's argument.

import contextlib
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from recall_lightning.cli.main import main as recall_lightning

RECIPE = """
trainer: {accelerator: cpu, devices: 1, logger: false, check_val_every_n_epoch: 12}
data:
  class_path: DigitsStream
  init_args: {scenario: split, num_tasks: 5, epochs_per_task: 12}
model:
  class_path: ClassifierModule
  init_args:
    num_classes: 10
    model: {class_path: MLP, init_args: {sizes: [64, 128, 10]}}
recall: {merge_first_task: false}
forgetting: {monitor: val/acc}
"""
METHODS = "finetune,lwf,recall"
COMPARE = ["compare", "-c", "recipe.yaml", "--out", "compared", "--methods", METHODS]

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    Path("recipe.yaml").write_text(RECIPE)
    recall_lightning([*COMPARE, "--sweep", "lwf.strength=1,4", "--seeds", "1", "--jobs", "2"])
    with open("compared/results.csv") as file:
        runs = list(csv.DictReader(file))

# %%
# A row a run. What protects old classes the most is of no use if it lets nothing new in: right and
# up is better.

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for run in runs:
    learned, kept = float(run["plasticity"]), 1 - float(run["forgetting"])
    axes.plot(learned, kept, "o", markersize=9, label=run["label"])
axes.set(xlabel="plasticity: accuracy on each task right after it", ylabel="1 - forgetting")
axes.set(xlim=(0, 1.05), ylim=(-0.05, 1.05))
axes.legend(frameon=False, loc="center left")
