"""
LoRA on SmolLM2
===============

SmolLM2-135M-Instruct learns speeches of the German parliament, then of the Dutch, with a LoRA
adapter on all linear layers. By fine-tuning, Dutch costs German; with RECALL hardly.
``RecallCallback`` merges what the adapter adds to the model, and what the model knew before the
first task is known from what it writes itself.

``make demo-llm`` trains both, on a CPU and with nothing from a hub, and then runs this script. The
build of this page does not: picture and output are of such a run, kept in ``docs/images``.

.. image:: /images/lora_smollm2.png
   :alt: Two panels. Left: loss on German and Dutch over training, by fine-tuning and with RECALL.
      Right: how far the model is from what it was, after each task.

.. literalinclude:: /images/lora_smollm2.txt
   :language: none
"""

# %%
# This is what is trained. Put texts of your own in the place of the parliaments,
# ``TextFilesStream`` with a file or folder a task, and ``CausalLMModule`` with ``model:`` a folder
# or an id of the hub in the place of the model. RECALL has its defaults, but for shorter texts of
# the model's own.
#
# .. literalinclude:: /../benchmarks/real/demo.yaml
#    :language: yaml
#    :start-at: trainer:

# sphinx_gallery_thumbnail_path = 'images/lora_smollm2.png'
import json
from pathlib import Path

import matplotlib.pyplot as plt

RUNS = Path("runs/demo-llm")  # of make demo-llm
METHODS = {"finetune": "fine-tuning", "recall": "RECALL"}


def read(method, file):
    """Return what a run has left in a file."""
    return json.loads((RUNS / method / "seed_0" / file).read_text())


matrices = {title: read(method, "task_matrix.json") for method, title in METHODS.items()}
abilities = {title: read(method, "general_ability.json") for method, title in METHODS.items()}

# %%
# The loss is of held-out speeches. A task's gain is its fall by the task's own training.


def gains(record):
    """Return each task's gain, in nats a token."""
    rows = [record["before"], *record["matrix"]]
    return [before[task] - rows[task + 1][task] for task, before in enumerate(rows[:-1])]


for title, record in matrices.items():
    learned = sum(gains(record)) / sum(gains(matrices["fine-tuning"]))
    print(f"{title:11}  gain {100 * learned:.0f} % of fine-tuning's", end=", ")
    print(f"forgetting of German {record['metrics']['forgetting']:.3f} nats a token", end=", ")
    print(f"KL from the model as it came {abilities[title]['kl'][-1]:.3f}")

# %%
# German rises while Dutch is learned; the divergence is of text that the model wrote before.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for title, style in (("fine-tuning", "--"), ("RECALL", "-")):
    record = matrices[title]
    rows = [record["before"], *record["matrix"]]
    for task, name in enumerate(record["tasks"]):
        losses = [row[task] for row in rows]
        left.plot(range(3), losses, f"C{task}{style}", marker="o", label=f"{name}, {title}")
    right.plot(range(3), [0.0, *abilities[title]["kl"]], f"k{style}", marker="o", label=title)
for axes in (left, right):
    axes.set_xticks(range(3), ["before", "after German", "after Dutch"])
    axes.legend(frameon=False, loc="upper right" if axes is left else "upper left")
left.set_ylim(top=5.1)
left.set_ylabel("loss on held-out speeches (nats a token)")
right.set_ylabel("KL from the model before (nats a token)")
figure.savefig(RUNS / "lora_smollm2.png", dpi=100)

# %%
# What it answers to questions that have nothing to do with either language.

for number, asked in enumerate(abilities["RECALL"]["answers"]):
    print(f"\n{asked['question']}\n  before: {asked['before']}")
    for title, ability in abilities.items():
        print(f"  after {title}: {ability['answers'][number]['after']}")
