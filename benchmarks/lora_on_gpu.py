"""RECALL on a LoRA adapter of Llama-2-7B's size, on a GPU: seconds and bytes beside plain training.

The model has Llama-2-7B's shapes and random weights, in bfloat16; the adapter is r = 16 on all
linear layers, in float32, gradients are checkpointed; the data are two tasks of random tokens.
Needs torch, lightning, transformers and peft alone.

    python -m benchmarks.lora_on_gpu [--layers 32] [--steps 30] [--tiny]

``--tiny`` runs the same on small shapes, on a CPU too. Prints and writes
``benchmarks/results/lora_on_gpu.md``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.tables import table
from recall_lightning import RecallCallback
from recall_lightning.recall.settings import MomentSettings

LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
}
TASKS = 2
GIB = 2**30
ON_GPU = torch.cuda.is_available()


@dataclass
class Clock(Callback):
    """Seconds of training steps, without those of callbacks before and after it."""

    steps: list[float] = field(default_factory=list)

    def on_train_batch_start(self, *args: Any) -> None:
        self.began = now()

    def on_before_zero_grad(self, *args: Any) -> None:
        self.steps.append(now() - self.began)


class Adapted(LightningModule):
    """A Llama of a configuration with an adapter."""

    def __init__(self, shapes: dict[str, int]) -> None:
        super().__init__()
        config = transformers.LlamaConfig(**shapes, max_position_embeddings=4096, use_cache=False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda" if ON_GPU else "cpu"):
                base = transformers.LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        self.model = peft.get_peft_model(base, lora)
        # random weights make no text, so that what is trained must not matter
        self.start = {n: p.detach().clone() for n, p in self.adapter().items()}

    def adapter(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def restart(self) -> None:
        """Set the adapter to what it was."""
        with torch.no_grad():
            for name, parameter in self.adapter().items():
                parameter.copy_(self.start[name].to(parameter.device))

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        assert isinstance(loss, Tensor)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter().values(), lr=1e-4)


def now() -> float:
    """Return the time at which all that was asked of the GPU is done."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def batches(task: int, steps: int, length: int, vocabulary: int) -> DataLoader[dict[str, Tensor]]:
    """Random tokens of a task."""
    drawn = torch.Generator().manual_seed(task)
    ids = torch.randint(vocabulary, (8 * steps, length), generator=drawn)
    rows = [
        {"input_ids": one, "labels": one, "attention_mask": torch.ones_like(one)} for one in ids
    ]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


def train(
    module: Adapted, recall: RecallCallback | None, steps: int, length: int
) -> tuple[float, float, float]:
    """Train all tasks; return median seconds a step, all seconds, and the highest memory in GiB."""
    module.restart()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock, began = Clock(), now()
    vocabulary = int(module.model.config.vocab_size)
    for task in range(TASKS):
        trainer = Trainer(
            max_epochs=1,
            callbacks=[clock, *([recall] if recall else [])],
            accelerator="gpu" if ON_GPU else "cpu",
            devices=1,
            precision="bf16-mixed",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches(task, steps, length, vocabulary))
    seconds = now() - began
    most = torch.cuda.max_memory_allocated() / GIB if ON_GPU else float("nan")
    return torch.tensor(clock.steps).median().item(), seconds, most


def row(recall: RecallCallback) -> list[str]:
    """Seconds that merges took, and bytes that their statistics take."""
    probes, merges = (
        [merge[part] for merge in recall.history] for part in ("probe_seconds", "merge_seconds")
    )
    state: Any = recall.state_dict()["statistics"]
    # what maps share is in memory once
    tensors = {t.data_ptr(): t.nbytes for t in leaves(state) if isinstance(t, Tensor)}
    return [
        f"{len(merges)}",
        f"{torch.tensor(probes).median():.2f} / {max(probes):.2f}",
        f"{torch.tensor(merges).median():.2f} / {max(merges):.2f}",
        f"{sum(tensors.values()) / GIB:.3f}",
    ]


def leaves(state: Any) -> list[Any]:
    """Return what a nesting of mappings and lists holds."""
    if isinstance(state, dict | list | tuple):
        values = state.values() if isinstance(state, dict) else state
        return [leaf for value in values for leaf in leaves(value)]
    return [state]


def main() -> None:
    """Train the same adapter without RECALL, with one merge a task, and by its default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps a task")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, of 8")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    shapes = TINY if given.tiny else LLAMA_2_7B | {"num_hidden_layers": given.layers}
    steps, length = (4, 16) if given.tiny else (given.steps, given.length)
    module = Adapted(shapes)
    adapter = sum(p.numel() * p.element_size() for p in module.adapter().values())
    whole = sum(p.numel() * p.element_size() for p in module.parameters())
    heads = ["", "seconds a step", "seconds in all", "most memory, GiB", "merges"]
    heads += ["seconds a probe, median / most", "seconds a merge", "statistics, GiB"]
    moments = MomentSettings(batches=4)  # what stands for the base is written by it, 4 batches
    kinds: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "RECALL, one merge a task": {"every": 1.0, "moments": moments},
        "RECALL, four merges a task": {"every": 0.25, "moments": moments},
    }
    train(module, None, 2, length)  # what starts up once
    rows = []
    for name, options in kinds.items():
        recall = None if options is None else RecallCallback(**options)
        step, seconds, memory = train(module, recall, steps, length)
        rows.append([name, f"{step:.3f}", f"{seconds:.1f}", f"{memory:.2f}"])
        rows[-1] += [""] * 4 if recall is None else row(recall)
        print("  ".join(rows[-1]), flush=True)
    card = torch.cuda.get_device_name() if ON_GPU else "no GPU"
    write_page(
        "lora_on_gpu",
        f"Two tasks of {steps} steps of 8 sequences of {length} tokens on an adapter, r = 16, of a "
        f"model of {'tiny' if given.tiny else 'Llama-2-7B’s'} shapes, "
        f"{shapes['num_hidden_layers']} layers: {whole / GIB:.2f} GiB, the adapter "
        f"{adapter / GIB:.3f} GiB, with its gradients and Adam's moments four times that. The "
        "first probe is that of what the base knew, on sequences that it writes. "
        f"{card}; {machine()}.",
        table(heads, rows),
    )


if __name__ == "__main__":
    main()
