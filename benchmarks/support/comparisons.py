"""Comparisons that a benchmark runs: each is one ``recall-lightning compare``."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from recall_lightning.compare.results import Run, load_runs


def compared(
    recipe: str | Path,
    folder: Path,
    variants: Mapping[str, str],
    seeds: Sequence[int],
    jobs: int,
    arguments: Sequence[str] = (),
) -> list[Run]:
    """Run variants of a recipe, of which those that are done are skipped.

    Args:
        recipe: The file.
        folder: Where the runs go.
        variants: Label to ``METHOD:ARGUMENTS``.
        seeds: Each variant runs with every one.
        jobs: Runs at the same time.
        arguments: Of every run.

    Returns:
        The runs, variant by variant.

    Raises:
        SystemExit: If one fails.
    """
    command = [sys.executable, "-m", "recall_lightning.cli.main", "compare"]
    command += ["-c", str(recipe), "--methods", "", "--jobs", str(jobs), "--out", str(folder)]
    command += ["--seeds", "".join(f"{seed}," for seed in seeds)]
    for label, setting in variants.items():
        command += ["--variant", f"{label}={setting}"]
    command += ["--", *arguments]
    print(f"{folder}: {len(variants)} settings", flush=True)
    code = subprocess.call(command, env={**os.environ, "COLUMNS": "100"})
    if code == 2:
        sys.exit(f"{folder}: the comparison could not start, see above")
    if code:
        sys.exit(f"{folder}: a run failed; start again to go on from there")
    rows = list(variants)
    found = [run for run in load_runs(folder) if run.label in rows and run.seed in seeds]
    return sorted(found, key=lambda run: (rows.index(run.label), run.seed))
