"""Train a recipe with several methods and seeds, each in a process of its own, and tabulate.

    python benchmarks/forgetting.py --recipe recipes/stdlib_text.yaml --seeds 0 --out runs/demo

A run that has finished is not repeated. The table's numbers are means over seeds, with a 95 %
interval (Student's t) where there are several.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

METRICS = ("average", "backward_transfer", "forgetting", "plasticity", "seconds")
Results = Mapping[str, Sequence[Mapping[str, float]]]


def main() -> None:
    arguments = _parse()
    methods, seeds = arguments.methods.split(","), arguments.seeds.split(",")
    out = Path(arguments.out)
    grid = [(method, seed) for seed in seeds for method in methods]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda run: _train(arguments, *run), grid))
    failed = [run for run, record in zip(grid, runs, strict=True) if record is None]
    if failed:
        names = ", ".join(f"{method} with seed {seed}" for method, seed in failed)
        sys.exit(f"failed: {names}; see train.log in the run's folder under {out}")
    results = {
        method: [r for (m, _), r in zip(grid, runs, strict=True) if m == method and r is not None]
        for method in methods
    }
    summary = {m: {k: mean(r[k] for r in rs) for k in METRICS} for m, rs in results.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    settings = _settings(out / methods[0] / f"seed_{seeds[0]}")
    better = "lower" if settings["mode"] == "min" else "higher"
    caption = (
        f"{settings['monitor']}, {better} is better; seed(s) {arguments.seeds}; forgetting: "
        f"{settings['forgetting_variant']} (the best score since the task's own training against "
        "the last)"
    )
    _print(results, Path(arguments.recipe).stem, caption)
    if arguments.table:
        Path(arguments.table).write_text(_markdown(results, arguments, caption))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="recipes/stdlib_text.yaml")
    parser.add_argument("--methods", default="finetune,recall", help="values of --method")
    parser.add_argument("--seeds", default="0", help="numbers, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--out", default="runs/forgetting")
    parser.add_argument("--table", help="a Markdown file to write the table to")
    parser.add_argument("overrides", nargs="*", help="more arguments of recall-lightning, after --")
    return parser.parse_args()


def _train(arguments: argparse.Namespace, method: str, seed: str) -> dict[str, float] | None:
    folder = Path(arguments.out) / method / f"seed_{seed}"
    finished = folder / "task_matrix.json"
    logger = "trainer.logger.init_args"
    command = [sys.executable, "-m", "recall_lightning.cli", "fit", "-c", arguments.recipe]
    command += ["--method", method, "--seed_everything", seed, "--data.init_args.seed", seed]
    command += [f"--{logger}.save_dir", arguments.out, f"--{logger}.name", method]
    command += [f"--{logger}.version", f"seed_{seed}", "--trainer.enable_progress_bar", "false"]
    command += ["--trainer.enable_checkpointing", "false", *arguments.overrides]
    recorded = folder / "command.txt"
    if not (
        finished.exists() and recorded.exists() and recorded.read_text() == shlex.join(command)
    ):
        folder.mkdir(parents=True, exist_ok=True)
        finished.unlink(missing_ok=True)
        print(f"training: {method}, seed {seed} …", flush=True)
        started = time.perf_counter()
        threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
        with (folder / "train.log").open("w") as log:
            code = subprocess.call(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads}
            )
        if code or not finished.exists():
            return None
        recorded.write_text(shlex.join(command))
        print(f"done: {method}, seed {seed}, {time.perf_counter() - started:.0f} s", flush=True)
    content = json.loads(finished.read_text())
    return {**content["metrics"], "seconds": content["seconds"]}


def _settings(folder: Path) -> dict[str, str]:
    return json.loads((folder / "task_matrix.json").read_text())


def _cell(values: Sequence[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.{digits}f} ± {half:.{digits}f}"


def _rows(results: Results) -> list[list[str]]:
    return [
        [method, *(_cell([r[k] for r in runs], 0 if k == "seconds" else 3) for k in METRICS)]
        for method, runs in results.items()
    ]


HEADINGS = ["method", "average", "backward transfer", "forgetting", "plasticity", "wall seconds"]


def _print(results: Results, title: str, caption: str) -> None:
    table = Table(title=title, caption=caption)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in _rows(results):
        table.add_row(*row)
    Console(width=100).print(table)


def _markdown(results: Results, arguments: argparse.Namespace, caption: str) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * len(METRICS)]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(results)]
    command = shlex.join(["python", *sys.argv])
    load = f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"{caption}; mean ± 95 % interval. {load}.\n\n```\n{command}\n```\n\n" + "\n".join(
        [*lines, ""]
    )


if __name__ == "__main__":
    main()
