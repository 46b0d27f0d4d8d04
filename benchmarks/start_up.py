"""How long commands and imports take before they do anything.

    python -m benchmarks.start_up [--repeats 5] [--wait 300]

Seconds from the start of a process to its end, each figure the median of the repeats; all are
measured in turns, so that a busy moment falls on each alike. Writes
``benchmarks/results/start_up.md``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.support.machine import machine, wait_until_idle
from benchmarks.support.pages import ROOT, write_page
from benchmarks.support.tables import table

OURS = ["-m", "recall_lightning.cli.main"]
LIGHTNING = "from lightning.pytorch.cli import LightningCLI; LightningCLI()"


def save_models(folder: Path) -> list[str]:
    """Save two models of a few weights, as folders."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        path = folder / f"model_{seed}"
        path.mkdir()
        save_file({"layer.weight": torch.randn(8, 8)}, path / "model.safetensors")
        (path / "config.json").write_text("{}")
        paths.append(str(path))
    return paths


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of the interpreter of each row."""
    merge = [*OURS, "merge", *save_models(folder), "--out", str(folder / "out")]
    return {
        "`python -c pass`": ["-c", "pass"],
        "`import torch`": ["-c", "import torch"],
        "`import lightning.pytorch`": ["-c", "import lightning.pytorch"],
        "`import recall_lightning`": ["-c", "import recall_lightning"],
        "`from recall_lightning import RecallCallback`": [
            "-c",
            "from recall_lightning import RecallCallback",
        ],
        "`recall-lightning merge --help`": [*OURS, "merge", "--help"],
        "`recall-lightning merge`, two tiny folders": merge,
        "`fit --help` of a plain LightningCLI": ["-c", LIGHTNING, "fit", "--help"],
        "`recall-lightning fit --help`": [*OURS, "fit", "--help"],
    }


def seconds(arguments: list[str], folder: Path) -> float:
    """Run Python once on arguments.

    Raises:
        SystemExit: If it fails, with what it said.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    taken = time.perf_counter() - began
    if ended.returncode:
        raise SystemExit(f"{arguments}: {ended.stderr}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="each figure is their median")
    parser.add_argument(
        "--wait", type=float, default=300, help="seconds to wait for an idle machine"
    )
    given = parser.parse_args()
    wait_until_idle(given.wait)
    about = machine()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        rows = commands(folder)
        taken: dict[str, list[float]] = {name: [] for name in rows}
        for repeat in range(given.repeats + 1):
            for name, arguments in rows.items():
                if "--out" in arguments:
                    arguments = [*arguments[:-1], str(folder / f"out_{repeat}")]
                once = seconds(arguments, folder)
                if repeat:  # the first reads files from the disk
                    taken[name].append(once)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    bare, with_torch = medians["`python -c pass`"], medians["`import torch`"]
    write_page(
        "start_up",
        f"From the start of a process to its end: medians of {given.repeats}, measured in turns, "
        f"files in the system's cache. {about}.",
        table(
            ["what", "seconds", "beyond `python -c pass`", "beyond `import torch`"],
            [
                [name, f"{value:.2f}", f"{value - bare:+.2f}", f"{value - with_torch:+.2f}"]
                for name, value in medians.items()
            ],
        ),
    )


if __name__ == "__main__":
    main()
