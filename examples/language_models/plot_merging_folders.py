"""
Merging models on disk
======================

A small language model was fine-tuned twice, apart: on Python's source, and on the instructions that
it compiles to. ``recall-lightning merge`` makes one model of the two folders, which
``from_pretrained`` loads. Methods and numbers are worth a few tries, as each takes a second.
"""

# %%
# The base reads Python's documentation, byte by byte; each fine-tune starts from it.

import copy
import tempfile

import matplotlib.pyplot as plt
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from recall_lightning.cli.main import main as recall_lightning
from recall_lightning.data import StdlibTextStream
from recall_lightning.models import CausalLMModule

DOMAINS = ["documentation", "source", "disassembly"]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
LLAMA = {"model_type": "llama", "vocab_size": 256, "num_attention_heads": 4} | SIZES

texts = StdlibTextStream(tasks=DOMAINS, train_sequences=1600)
train_loaders = [DataLoader(texts.train_dataset(t), batch_size=16, shuffle=True) for t in range(3)]
val_loaders = [DataLoader(texts.val_dataset(t), batch_size=128) for t in range(3)]


def trainer(epochs=1):
    """Return a Trainer that leaves nothing behind."""
    return Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


folder = tempfile.TemporaryDirectory()
base, source, listed = paths = [
    f"{folder.name}/{name}" for name in ("base", "source", "disassembly")
]

seed_everything(0, verbose=False)
first = CausalLMModule(LLAMA)
trainer(epochs=2).fit(first, train_loaders[0])
tuned = [first, copy.deepcopy(first), copy.deepcopy(first)]
for task in (1, 2):
    trainer().fit(tuned[task], train_loaders[task])
for module, path in zip(tuned, paths, strict=True):
    module.model.save_pretrained(path)

# %%
# Four merges. Those that work on task vectors, the differences from the base, are told the base.

merges = {
    "linear": [],
    "task_arithmetic, scale 0.7": ["--base", base, "--scale", "0.7"],
    "ties, density 0.5": ["--base", base, "--density", "0.5"],
    "dare, density 0.5": ["--base", base, "--density", "0.5", "--scale", "0.7"],
}
for name, options in merges.items():
    method, out = name.partition(",")[0], f"{folder.name}/{name}"
    recall_lightning(["merge", source, listed, "--out", out, "--method", method, *options])

# %%
# What each knows of the three domains: loss on held-out text, in nats a byte, lower is better.


def losses(path):
    """Return the loss of the model in a folder, on each domain."""
    module = CausalLMModule(LLAMA)
    module.model = AutoModelForCausalLM.from_pretrained(path)
    found = trainer().validate(module, val_loaders, verbose=False)
    return [found[task][f"val/loss/dataloader_idx_{task}"] for task in range(3)]


models = {"base": base, "tuned on source": source, "tuned on disassembly": listed}
models |= {name: f"{folder.name}/{name}" for name in merges}
found = {name: losses(path) for name, path in models.items()}
folder.cleanup()

figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
for task, domain in enumerate(DOMAINS):
    heights = [values[task] for values in found.values()]
    places = [place + 0.25 * (task - 1) for place in range(len(found))]
    axes.barh(places, heights, height=0.25, label=domain)
axes.set_yticks(range(len(found)), list(found))
axes.invert_yaxis()
axes.set(xlabel="loss on held-out text (nats a byte)")
axes.legend(frameon=False, loc="lower right")
