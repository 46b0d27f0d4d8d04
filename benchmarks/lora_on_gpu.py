"""RECALL on a LoRA adapter of Llama-2-7B's size, on a GPU: seconds and bytes beside plain training.

The model has Llama-2-7B's shapes and random weights, in bfloat16; the adapter is r = 16 on all
linear layers, in float32; the data are two tasks of ``recipes/five_tasks_tiny``.

    python -m benchmarks.lora_on_gpu

Writes ``benchmarks/results/lora_on_gpu.md``.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.support.machine import machine
from benchmarks.support.pages import ROOT, write_page
from benchmarks.support.tables import table
from recall_lightning import RecallCallback
from recall_lightning.data import InstructionStream, InstructionTask
from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings

TINY = ROOT / "recipes/five_tasks_tiny"
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
GIB = 2**30


class Clock(Callback):
    """Seconds of training steps, without those of callbacks before it."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_before_zero_grad(self, *args: Any) -> None:
        torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self.began)


def stream() -> InstructionStream:
    """Two tasks of 24 steps."""
    tasks = [
        InstructionTask(
            name, name, f"{TINY}/data/{name}_train.jsonl", f"{TINY}/data/{name}_val.jsonl"
        )
        for name in ("squad_v2", "race")
    ]
    return InstructionStream(tasks, str(TINY / "model"), max_length=256, chat=True, batch_size=8)


def train(module: LightningModule, recall: RecallCallback | None) -> tuple[float, float, float]:
    """Train; return median seconds a step, all seconds, and the highest memory in GiB."""
    torch.cuda.reset_peak_memory_stats()
    clock, data = Clock(), stream()
    trainer = Trainer(
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[clock, *([recall] if recall else [])],
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(module, datamodule=data)
    torch.cuda.synchronize()
    steps = torch.tensor(clock.steps).median().item()
    return steps, time.perf_counter() - began, torch.cuda.max_memory_allocated() / GIB


def main() -> None:
    """Train the same adapter without RECALL, by its default and by the paper's rule."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    with torch.device("cuda"):
        module = CausalLMModule(
            LLAMA_2_7B,
            lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
            dtype="bfloat16",
            gradient_checkpointing=True,
            lora=LoraSettings(r=16, alpha=32, target_modules="all-linear"),
        )
    adapter = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in module.parameters())
    heads = ["", "seconds a step", "seconds in all", "most memory, GiB", "snapshot / adapter"]
    heads += ["seconds a probe", "seconds a merge"]
    rows = []
    kinds: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "RECALL, the paper's rule every 25 %": {"every": 0.25, "rule": "rbf"},
        "RECALL, importance and subspace every 25 %": {
            "every": 0.25,
            "rule": "importance",
            "end_rule": "subspace",
        },
        "RECALL, default": {},
    }
    for name, options in kinds.items():
        recall = None if options is None else RecallCallback(**options)
        step, seconds, memory = train(module, recall)
        row = [f"{step:.3f}", f"{seconds:.1f}", f"{memory:.2f}"]
        if recall is not None:
            taken = sum(t.numel() * t.element_size() for t in recall.snapshots[-1].values())
            row += [f"{taken / adapter:.3f}"]
            for part in ("probe_seconds", "merge_seconds"):
                values = torch.tensor([merge[part] for merge in recall.history])
                row += [f"{values.median():.2f}"]
        rows.append([name, *row, *[""] * (6 - len(row))])
    write_page(
        "lora_on_gpu",
        f"Two tasks of 24 steps on an adapter, r = 16, of a model of Llama-2-7B's shapes: "
        f"{whole / GIB:.2f} GiB, the adapter {adapter / GIB:.3f} GiB. "
        f"{torch.cuda.get_device_name()}; {machine()}.",
        table(heads, rows),
    )


if __name__ == "__main__":
    main()
