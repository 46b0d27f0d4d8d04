"""What RecallCallback costs: the same training with and without it, by turns.

    python benchmarks/overhead.py --repeats 3

Trains the recipe as it is, but without logging, and prints two figures: the ratio of wall times
with and without the callback (median over the pairs, which the machine's noise moves by a few per
cent), and the time spent inside the callback's hooks as Lightning's profiler records it, over the
rest of the run's. What it imports before training (scikit-learn, about a second, once a process)
is told apart.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

import torch
from lightning.pytorch.profilers import SimpleProfiler

from recall_lightning.callbacks.recall import RecallCallback
from recall_lightning.cli import RecallCLI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="recipes/stdlib_text.yaml")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, load average before {os.getloadavg()[0]:.1f}", flush=True)
    ratios, shares = [], []
    for _ in range(arguments.repeats):
        without, _, _ = train(arguments.recipe, "finetune")
        with_callback, inside, setup = train(arguments.recipe, "recall")
        ratios.append(with_callback / without)
        shares.append(inside / (with_callback - inside))
        print(
            f"without {without:.1f} s, with {with_callback:.1f} s, inside {inside:.2f} s, "
            f"setup {setup:.2f} s",
            flush=True,
        )
    print(f"wall time with / without: {statistics.median(ratios):.3f}")
    print(f"inside the callback / the rest of training: {statistics.median(shares):.2%}")


def train(recipe: str, method: str) -> tuple[float, float, float]:
    """Return the seconds of a fit, of RecallCallback's hooks in training, and of its setup."""
    args = ["-c", "recipes/defaults.yaml", "-c", recipe, "--method", method]
    args += ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    args += ["--trainer.enable_checkpointing=false"]
    sys.argv = sys.argv[:1]  # LightningCLI warns where arguments come from both
    cli = RecallCLI(args=args, run=False, save_config_callback=None, seed_everything_default=0)
    profiler = SimpleProfiler(dirpath=tempfile.mkdtemp(), filename="profile")  # not on the screen
    vars(cli.trainer)["profiler"] = profiler
    cli.datamodule.train_dataset(0)  # reading the text is not training
    started = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule)
    seconds = time.perf_counter() - started
    hooks = profiler.recorded_durations.items()
    inside = sum(sum(each) for name, each in hooks if name.startswith(f"[Callback]{NAME}."))
    setup = sum(profiler.recorded_durations.get(f"[Callback]{NAME}.setup", []))
    return seconds - setup, inside - setup, setup


NAME = RecallCallback.__name__

if __name__ == "__main__":
    main()
