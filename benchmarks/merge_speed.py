"""How long merging takes and what memory it needs, as ratios to copying on the same machine.

    python benchmarks/merge_speed.py

In memory, a Llama's weights are merged with a snapshot of them. File to file, two fine-tunes of it
are merged linearly, by this library and in the way that stacks, multiplies and sums whole tensors
and holds an output shard in memory until it is full; of the input it either reads whole shards into
memory or maps them. Files lie in memory (/dev/shm), or the disk would be measured. Every figure is
a median; extra memory is the peak of anonymous memory (RssAnon) over what it was before.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.functional.in_place import lerp_, weighted_sum_

Weights = dict[str, torch.Tensor]
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
    console = Console(width=100)
    console.print(
        f"{args.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.2f}, "
        f"medians of {args.repeats}"
    )
    if "memory" in args.parts:
        console.print(in_memory(args.size, args.repeats))
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if "files" in args.parts:
            console.print(from_files(Path(folder), args.size, args.repeats, args.threads))
        if "growth" in args.parts:
            console.print(growth(Path(folder), args.repeats, args.threads))


def in_memory(size: int, repeats: int) -> Table:
    """Compare merging weights in place with copying them."""
    table = Table("in place", "seconds", "× copy_", "extra MiB", title=f"{size} M parameters")
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
            table.add_row(name, f"{seconds:.3f}", f"{seconds / base:.2f}", f"{extra:.1f}")
        table.add_section()
    return table


def copy_(live: Weights, snapshot: Weights) -> None:
    for name, tensor in live.items():
        tensor.copy_(snapshot[name])


def from_files(folder: Path, size: int, repeats: int, threads: int) -> Table:
    """Compare a linear merge with one that stacks whole tensors, in processes of their own."""
    table = Table(
        "file to file", "seconds", "times faster", "extra MiB", title=f"{size} M parameters"
    )
    for dtype in (torch.float32, torch.bfloat16):
        paths = save_llamas(folder / str(dtype)[6:], size, dtype)
        measured = {way: worker(way, paths, repeats, threads) for way in WAYS}
        for way, label in WAYS.items():
            seconds, extra = measured[way]
            faster = f"{measured['whole shards'][0] / seconds:.2f}"
            row = f"{label}, {str(dtype)[6:]}", f"{seconds:.2f}", faster, f"{extra:.0f}"
            table.add_row(*row)
        table.add_section()
        shutil.rmtree(folder / str(dtype)[6:])
    return table


def growth(folder: Path, repeats: int, threads: int) -> Table:
    """Merge models of growing size from file to file, in bfloat16."""
    table = Table("million parameters", "GB read", "seconds", "GB/s", "extra MiB", title="growth")
    for size in LLAMAS:
        paths = save_llamas(folder / str(size), size, torch.bfloat16)
        gigabytes = sum(path.stat().st_size for path in paths) / 1e9
        seconds, extra = worker("streamed", paths, repeats, threads)
        speed = f"{gigabytes / seconds:.2f}"
        table.add_row(str(size), f"{gigabytes:.2f}", f"{seconds:.2f}", speed, f"{extra:.0f}")
        shutil.rmtree(folder / str(size))
    return table


def measured_merge(way: str, first: str, second: str) -> tuple[float, float]:
    """Merge two files once and return the seconds and the extra MiB."""
    out = Path(first).parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = MergeSettings([first, second], str(out), weights=WEIGHTS)
    warm = Path(first).parent / "warm"
    save_file({"w": torch.ones(8)}, f"{warm}.safetensors")
    merge_files(MergeSettings([f"{warm}.safetensors"] * 2, str(warm)))  # imports are not measured
    shutil.rmtree(warm)
    with peak_memory() as extra:
        started = time.perf_counter()
        if way == "streamed":
            merge_files(settings)
        else:
            stack_multiply_sum([Path(first), Path(second)], out, mapped=way == "mapped shards")
        seconds = time.perf_counter() - started
    return seconds, extra[0]


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
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", way]
    runs = [
        json.loads(subprocess.check_output([*command, *map(str, paths)], text=True))
        for _ in range(repeats)
    ]
    return statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)


def median_of(run: Callable[[], None], repeats: int) -> tuple[float, float]:
    run()
    times, extras = [], []
    for _ in range(repeats):
        with peak_memory() as extra:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        extras.append(extra[0])
    return statistics.median(times), statistics.median(extras)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Fill a list with the peak of this process's anonymous memory inside, in MiB above before."""
    before, peak, done = anonymous_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def anonymous_memory() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


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


def wait_until_idle(most: float) -> None:
    """Wait until the load is low, or say that it was not."""
    deadline = time.monotonic() + most
    while os.getloadavg()[0] > 0.3 and time.monotonic() < deadline:
        time.sleep(5)
    if os.getloadavg()[0] > 0.3:
        print(f"the machine is busy: load {os.getloadavg()[0]:.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
