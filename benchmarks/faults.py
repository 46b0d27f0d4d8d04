"""Kill, starve and damage runs, count what they survive, and write ``benchmarks/FAULTS.md``.

    python benchmarks/faults.py [--kills 400] [--damages 10000] [--seed 1000]

The faults are those of ``tests/faults``, with other seeds and more of them.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recall_lightning.weights.snapshot_file import FileSnapshot  # noqa: E402
from tests.faults import damaging, failing, killing  # noqa: E402

PAGE = """# Faults

Written by `{command}`.

A **kill** is SIGKILL at one of a run's events, drawn by seed: before or after a hook of the
Trainer, a measurement, a merge and each weight in it, an optimizer step, a checkpoint, a write, a
flush, a rename. Every third run is killed once more after it was resumed. It survives if weights,
optimizer, schedulers, task matrix and coefficients end bit for bit as in a run that was not killed.

A **failed write** is one of a run's writes that ends with "No space left on device", each in a run
of its own. It survives if the run goes on, or stops and resumes, to the same end bit for bit, and
no half file is left.

**Damage** to a snapshot's file is a byte changed, lost or added, a page of zeros, a truncation, or
halves exchanged. It survives if the file is refused by name.

| fault | tried | survived | lost |
| --- | ---: | ---: | ---: |
{rows}
"""


def kills(folder: Path, scenario: str, number: int, seed: int) -> tuple[int, int]:
    """Return how many kills were tried and how many were not survived."""
    whole, events = killing.reference(folder / "whole", scenario)
    tried = lost = 0
    for run in range(number):
        trial = folder / str(run)
        try:
            points, found = killing.trial(trial, scenario, seed + run, whole, events)
        except (AssertionError, TimeoutError) as error:
            points, found = [0], [str(error)]
        tried += len(points)
        if found:
            lost += len(points)
            print(f"{scenario}, seed {seed + run}, killed at {points}: {found[:3]}", flush=True)
    return tried, lost


def failed_writes(folder: Path) -> tuple[int, int, int]:
    """Return how many writes failed, how many runs were lost, and how many went on."""
    whole, disk = failing.run(folder / "whole")
    outcomes: Counter[str] = Counter()
    for number in range(1, disk.writes + 1):
        failed, went_on, found = failing.trial(folder / str(number), number, whole)
        outcomes["tried"] += failed is not None
        outcomes["lost"] += bool(found)
        outcomes["went on"] += bool(failed and went_on)
    return outcomes["tried"], outcomes["lost"], outcomes["went on"]


def damages(folder: Path, number: int, seed: int) -> tuple[int, int]:
    """Return how many damages were tried and how many were not noticed."""
    net = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    reference = FileSnapshot.write(net, folder, "task_0").reference
    content = (folder / reference.name).read_bytes()
    unnoticed = 0
    for each in range(seed, seed + number):
        _, bad = damaging.damaged(content, each)
        unnoticed += not damaging.is_refused(reference, folder, bad)
    return number, unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=400, help="runs to kill")
    parser.add_argument("--damages", type=int, default=10_000, help="files to damage")
    parser.add_argument("--seed", type=int, default=1000, help="the first seed")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as parent:
        for number, scenario in enumerate(killing.SCENARIOS):
            runs = arguments.kills // len(killing.SCENARIOS)
            tried, lost = kills(Path(parent, f"kill{number}"), scenario, runs, arguments.seed)
            rows.append((f"SIGKILL ({scenario})", tried, lost))
        tried, lost, went_on = failed_writes(Path(parent, "writes"))
        rows.append((f"failed write ({went_on} went on, {tried - went_on} resumed)", tried, lost))
        Path(parent, "damages").mkdir()
        tried, lost = damages(Path(parent, "damages"), arguments.damages, arguments.seed)
        rows.append(("damaged snapshot file", tried, lost))
    table = "\n".join(
        f"| {name} | {tried} | {tried - lost} | {lost} |" for name, tried, lost in rows
    )
    command = f"python benchmarks/faults.py --kills {arguments.kills}"
    command += f" --damages {arguments.damages} --seed {arguments.seed}"
    Path(ROOT, "benchmarks", "FAULTS.md").write_text(PAGE.format(command=command, rows=table))
    print(table)


if __name__ == "__main__":
    main()
