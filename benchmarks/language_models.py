"""Bytes and seconds of one merge at the shapes of 7-billion-parameter language models.

    python -m benchmarks.language_models

No weights are downloaded: shapes come from the models' configs, values are random. For full
fine-tuning one decoder layer, embedding and head at a time are real and the rest is on the meta
device; the figure of the whole model is a projection from what these took, and marked so. For LoRA
the adapter is whole and real, on a base on the meta device. Snapshot and merge are what
RecallCallback calls between two steps: drift by block, then the merge in place.
Writes ``benchmarks/results/language_models.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.support.machine import machine
from benchmarks.support.pages import write_page
from benchmarks.support.repeats import median_seconds
from benchmarks.support.tables import table
from recall_lightning.measuring.blocks import Block, find_blocks
from recall_lightning.merging.blockwise import Drift, merge_snapshots_, weights_of_names
from recall_lightning.merging.lora.pairs import LoraPair, find_lora_pairs
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot

MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Qwen2-7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
REPEATS = 5
GIB, MIB = 2**30, 2**20


def on_meta(name: str, dtype: torch.dtype, **changes: Any) -> nn.Module:
    """Build a model of random weights, none of which takes memory."""
    fields = MODELS[name] | changes
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def bytes_of(weights: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, on the meta device too."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


def merge_of(module: nn.Module, name: str) -> tuple[list[str], float]:
    """Snapshot and merge a part of a model; return cells of the table, and the seconds."""
    live = named_weights(module)
    snapshot, copies = fill(live), {key: torch.empty_like(weight) for key, weight in live.items()}
    drift, block = Drift(snapshot), Block(name, 0, 1.0, name, tuple(live))

    def merge() -> None:
        drift.by_block(live, [block])
        merge_snapshots_(live, [snapshot], [dict.fromkeys(live, 0.3)], [], False)

    def copy() -> None:
        for key, weight in live.items():
            copies[key].copy_(weight.detach())

    taken, copied = median_seconds(merge, REPEATS), median_seconds(copy, REPEATS)
    cells = [f"`{name}`", f"{bytes_of(live.values()) / MIB:,.0f}", f"{snapshot.nbytes / MIB:,.0f}"]
    cells += [f"{taken:.2f}", f"{bytes_of(live.values()) / GIB / taken:.2f}"]
    cells += [f"{taken / copied:.1f}"]
    return cells, taken


def whole_weights(name: str) -> list[list[str]]:
    """Snapshot and merge one decoder layer, the embedding and the head, in bfloat16."""
    model = on_meta(name, torch.bfloat16, num_hidden_layers=1)
    times = {"model.layers.0": MODELS[name]["num_hidden_layers"]}
    rows, projected = [], 0.0
    for part in ("model.layers.0", "model.embed_tokens", "lm_head"):
        cells, taken = merge_of(model.get_submodule(part).to_empty(device="cpu"), part)
        rows.append([name, *cells])
        projected += times.get(part, 1) * taken
        model.get_submodule(part).to_empty(device="meta")
    whole = bytes_of(on_meta(name, torch.bfloat16).parameters()) / MIB
    cells = ["*whole model, projected*", f"{whole:,.0f}", f"*{whole:,.0f}*", f"*{projected:.0f}*"]
    return [*rows, [name, *cells, "", ""]]


def adapter(name: str, dtype: torch.dtype) -> list[str]:
    """Snapshot and merge the whole adapter, r = 16 on all linear layers."""
    base = on_meta(name, torch.bfloat16)
    with torch.device("meta"):
        model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for layer in model.modules():
        for side in ("lora_A", "lora_B"):
            for linear in getattr(layer, side, {}).values():
                linear.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=dtype))
    live, blocks, pairs = named_weights(model), find_blocks(model), find_lora_pairs(model)
    snapshot = fill(live)
    drift = Drift(snapshot)
    weights = [weights_of_names({b.name: 0.3 for b in blocks}, blocks, snapshot, pairs)]

    def merge() -> None:
        drift.by_block(live, blocks)
        merge_snapshots_(live, [snapshot], weights, pairs, False)

    pair = pairs[0]
    wanted = 0.7 * update(pair, live) + 0.3 * update(pair, snapshot)
    left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    best = left[:, : pair.rank] * values[: pair.rank] @ right[: pair.rank]
    merge()
    error = (update(pair, live) - best).norm() / best.norm()
    size, kind = bytes_of(live.values()), str(dtype).removeprefix("torch.")
    cells = [name, kind, str(len(pairs)), f"{size / MIB:.1f}", f"{snapshot.nbytes / size:.3f}"]
    return [*cells, f"{median_seconds(merge, 3):.1f}", f"{error:.0e}"]


def fill(live: dict[str, torch.Tensor]) -> Snapshot:
    """Give weights random values, take a snapshot, and move them on a little."""
    with torch.no_grad():
        for weight in live.values():
            weight.normal_(std=0.02)
        snapshot = Snapshot({name: weight.detach().clone() for name, weight in live.items()})
        for weight in live.values():
            weight.add_(torch.randn_like(weight), alpha=0.005)
    return snapshot


def update(pair: LoraPair, tensors: Any) -> torch.Tensor:
    """The matrix that a pair of factors stands for, in float64."""
    factors = pair.factors(tensors)
    return factors.scale * factors.b.double() @ factors.a.double()


def main() -> None:
    """Measure, and write the page."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.manual_seed(0)
    threads, where = torch.get_num_threads(), machine()
    wholes = [row for name in MODELS for row in whole_weights(name)]
    adapters = [
        adapter(name, dtype) for name in MODELS for dtype in (torch.float32, torch.bfloat16)
    ]
    columns = ["model", "part", "weights, MiB", "snapshot, MiB", "seconds a merge"]
    columns += ["GiB of weights a second", "times a copy of the weights"]
    of_adapters = ["model", "adapter", "pairs", "adapter, MiB", "snapshot / adapter"]
    of_adapters += ["seconds a merge", "error"]
    write_page(
        "language_models",
        f"""One merge at the shapes of Llama-2-7B and Qwen2-7B, on random values. CPU with {threads}
threads, medians of {REPEATS} (adapters: 3). A merge is what the callback does: drift by block, then
the weights. {where} at the start.""",
        """Full fine-tuning in bfloat16, one part of the model at a time. The rows of whole models
are **projections** and were never run: bytes from the configs, seconds those of one layer times the
layers, plus embedding and head.""",
        table(columns, wholes, names=2),
        """LoRA, r = 16 on all linear layers: every pair of factors of the whole model, its base on
the meta device. The error is that of the first layer's merged update against the best one of its
rank, which a dense SVD gave.""",
        table(of_adapters, adapters, names=2),
    )


if __name__ == "__main__":
    main()
