"""How long merging takes and what memory it needs, as ratios to copying on the same machine.

    python -m benchmarks.merge_speed [--parts memory files growth]

In memory, a Llama's weights are merged with a snapshot of them. File to file, two fine-tunes of it
are merged linearly, by this library and in the way that stacks, multiplies and sums whole tensors
and holds an output shard in memory until it is full; of the input it either reads whole shards into
memory or maps them. Files lie in memory (/dev/shm), or the disk would be measured. Every figure is
a median; extra memory is the peak of anonymous memory (RssAnon) over what it was before. Writes
``benchmarks/results/merge_speed.md``.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.support.machine import machine, wait_until_idle
from benchmarks.support.memory import PeakMemory
from benchmarks.support.pages import write_page
from benchmarks.support.repeats import median_seconds, medians_of_processes
from benchmarks.support.tables import table
from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.functional.in_place import lerp_, weighted_sum_

Weights = dict[str, torch.Tensor]
MIB = 1 << 20
# hidden size, layers: about so many million parameters
LLAMAS = {30: (384, 8), 75: (512, 16), 150: (768, 14), 300: (1024, 18), 600: (1536, 17)}
WEIGHTS = (0.6, 0.4)
PARTS = ("memory", "files", "growth")
WAYS = {
    "whole shards": "stack, multiply, sum, whole shards",
    "mapped shards": "stack, multiply, sum, mapped shards",
    "streamed": "recall_lightning",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="each figure is their median")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--size", type=int, default=300, choices=LLAMAS, help="million parameters")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument(
        "--wait", type=float, default=300, help="seconds to wait for an idle machine"
    )
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        print(json.dumps(measured_merge(*args.worker)))
        return
    wait_until_idle(args.wait)
    about = (
        "Merging, as ratios to copying on the same machine: CPU only, "
        f"{args.threads} threads, medians of {args.repeats}. {machine()}."
    )
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    parts = []
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if "memory" in args.parts:
            parts.append(in_memory(args.size, args.repeats))
        if "files" in args.parts:
            parts.append(from_files(Path(folder), args.size, args.repeats, args.threads))
        if "growth" in args.parts:
            parts.append(growth(Path(folder), args.repeats, args.threads))
    write_page("merge_speed", about, *parts)


def in_memory(size: int, repeats: int) -> str:
    """Compare merging weights in place with copying them."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        live, snapshot = llama(size, 0, dtype), llama(size, 1, dtype)
        ways: dict[str, Callable[[], None]] = {
            "copy_": partial(copy_, live, snapshot),
            "lerp_, finiteness known": partial(lerp_, live, snapshot, 0.3, check_finite=False),
            "lerp_, finiteness checked": partial(lerp_, live, snapshot, 0.3),
            "weighted_sum_ of two, finiteness known": partial(
                weighted_sum_, live, [live, snapshot], [0.7, 0.3], check_finite=False
            ),
        }
        measured = {label: median_of(way, repeats) for label, way in ways.items()}
        base, _ = measured["copy_"]
        speed = 2 * sum(tensor.nbytes for tensor in live.values()) / base / 1e9
        for label, (seconds, extra) in measured.items():
            name = f"{label}, {str(dtype)[6:]}"
            name += f" ({speed:.1f} GB/s)" if label == "copy_" else ""
            rows.append([name, f"{seconds:.3f}", f"{seconds / base:.2f}", f"{extra:.1f}"])
    return table([f"in place, {size} M parameters", "seconds", "× copy_", "extra MiB"], rows)


def copy_(live: Weights, snapshot: Weights) -> None:
    for name, tensor in live.items():
        tensor.copy_(snapshot[name])


def from_files(folder: Path, size: int, repeats: int, threads: int) -> str:
    """Compare a linear merge with one that stacks whole tensors, in processes of their own."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        paths = save_llamas(folder / str(dtype)[6:], size, dtype)
        measured = {way: worker(way, paths, repeats, threads) for way in WAYS}
        for way, label in WAYS.items():
            seconds, extra = measured[way]
            faster = f"{measured['whole shards'][0] / seconds:.2f}"
            name = f"{label}, {str(dtype)[6:]}"
            rows.append([name, f"{seconds:.2f}", faster, f"{extra:.0f}"])
        shutil.rmtree(folder / str(dtype)[6:])
    heads = [f"file to file, {size} M parameters", "seconds", "times faster", "extra MiB"]
    return table(heads, rows)


def growth(folder: Path, repeats: int, threads: int) -> str:
    """Merge models of growing size from file to file, in bfloat16."""
    rows = []
    for size in LLAMAS:
        paths = save_llamas(folder / str(size), size, torch.bfloat16)
        gigabytes = sum(path.stat().st_size for path in paths) / 1e9
        seconds, extra = worker("streamed", paths, repeats, threads)
        cells = [f"{gigabytes:.2f}", f"{seconds:.2f}", f"{gigabytes / seconds:.2f}"]
        rows.append([str(size), *cells, f"{extra:.0f}"])
        shutil.rmtree(folder / str(size))
    heads = ["growth, bfloat16, million parameters (nominal)", "GB read", "seconds", "GB/s"]
    return table([*heads, "extra MiB"], rows)


def measured_merge(way: str, first: str, second: str) -> dict[str, float]:
    """Merge two files once and return the seconds and the extra MiB."""
    out = Path(first).parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = MergeSettings([first, second], str(out), weights=WEIGHTS)
    warm = Path(first).parent / "warm"
    save_file({"w": torch.ones(8)}, f"{warm}.safetensors")
    merge_files(MergeSettings([f"{warm}.safetensors"] * 2, str(warm)))  # imports are not measured
    shutil.rmtree(warm)
    with PeakMemory() as memory:
        started = time.perf_counter()
        if way == "streamed":
            merge_files(settings)
        else:
            stack_multiply_sum([Path(first), Path(second)], out, mapped=way == "mapped shards")
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "extra": memory.extra / MIB}


def stack_multiply_sum(
    models: list[Path], out: Path, mapped: bool, shard_size: float = 5e9
) -> None:
    """Merge whole tensors by stacking, and collect them until a shard of the output is full."""
    out.mkdir()
    opened = [load_file(model) if mapped else load(model.read_bytes()) for model in models]
    shard: Weights = {}
    for name in opened[0]:
        stacked = torch.stack([tensors[name] for tensors in opened])
        factors = torch.tensor(WEIGHTS, dtype=stacked.dtype)
        factors = factors.reshape(-1, *[1] * (stacked.dim() - 1))
        shard[name] = (stacked * factors).sum(dim=0) / factors.sum(dim=0)
        if sum(tensor.nbytes for tensor in shard.values()) > shard_size:
            save_file(shard, out / f"{name}.safetensors")
            shard = {}
    save_file(shard, out / "last.safetensors")


def worker(way: str, paths: list[Path], repeats: int, threads: int) -> tuple[float, float]:
    arguments = ["--threads", str(threads), "--worker", way, *map(str, paths)]
    medians = medians_of_processes("benchmarks.merge_speed", arguments, repeats)
    return medians["seconds"], medians["extra"]


def median_of(run: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the median seconds and, of other runs, the median of the extra MiB."""
    seconds, extras = median_seconds(run, repeats), []
    for _ in range(repeats):
        with PeakMemory() as memory:
            run()
        extras.append(memory.extra / MIB)
    return seconds, statistics.median(extras)


def save_llamas(folder: Path, size: int, dtype: torch.dtype) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / "first.safetensors", folder / "second.safetensors"]
    for seed, path in enumerate(paths):
        save_file(llama(size, seed, dtype), path)
    return paths


def llama(size: int, seed: int, dtype: torch.dtype) -> Weights:
    """Draw a Llama of about ``size`` million parameters; every seed but 0 is a fine-tune of it."""
    hidden, layers = LLAMAS[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=16_000 if size < 150 else 32_000,
    )
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    base, tuned = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=base).mul_(0.02)
        if seed:
            weight += torch.randn(shape, generator=tuned).mul_(0.0002)
        weights[name] = weight.to(dtype)
    return weights


if __name__ == "__main__":
    main()
