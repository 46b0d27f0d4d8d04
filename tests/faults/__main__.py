"""More faults than the tests try, with other seeds: prints what they came to as JSON.

    python -m tests.faults [--kills 400] [--damages 10000] [--seed 1000]

A list of ``[fault, tried, lost]``; what was lost is told on stderr.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

from torch import nn

from recall_lightning.weights.snapshot_file import FileSnapshot
from tests.faults import damaging, failing, killing


def kills(folder, scenario, number, seed):
    """Return how many kills were tried and how many were not survived."""
    whole, events = killing.reference(folder / "whole", scenario)
    tried = lost = 0
    for run in range(number):
        try:
            points, found = killing.trial(folder / str(run), scenario, seed + run, whole, events)
        except (AssertionError, TimeoutError) as error:
            points, found = [0], [str(error)]
        tried += len(points)
        if found:
            lost += len(points)
            print(f"{scenario}, {seed + run}, killed at {points}: {found[:3]}", file=sys.stderr)
    return tried, lost


def failed_writes(folder):
    """Return how many writes failed, how many runs were lost, and how many went on."""
    whole, disk = failing.run(folder / "whole")
    outcomes = Counter()
    for number in range(1, len(disk.writes) + 1):
        failed, went_on, found = failing.trial(folder / str(number), number, whole)
        outcomes["tried"] += failed is not None
        outcomes["lost"] += bool(found)
        outcomes["went on"] += bool(failed and went_on)
    return outcomes["tried"], outcomes["lost"], outcomes["went on"]


def damages(folder, number, seed):
    """Return how many damages were tried and how many were not noticed."""
    folder.mkdir()
    net = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    reference = FileSnapshot.write(net, folder, "task_0").reference
    content = (folder / reference.name).read_bytes()
    unnoticed = 0
    for each in range(seed, seed + number):
        _, bad = damaging.damaged(content, each)
        unnoticed += not damaging.is_refused(reference, folder, bad)
    return number, unnoticed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=400, help="runs to kill")
    parser.add_argument("--damages", type=int, default=10_000, help="files to damage")
    parser.add_argument("--seed", type=int, default=1000, help="the first seed")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as parent, redirect_stdout(sys.stderr):  # runs print tables
        runs = given.kills // len(killing.SCENARIOS)
        for number, scenario in enumerate(killing.SCENARIOS):
            counts = kills(Path(parent, f"kill{number}"), scenario, runs, given.seed)
            found.append([f"SIGKILL ({scenario})", *counts])
        tried, lost, went_on = failed_writes(Path(parent, "writes"))
        found.append([f"failed write ({went_on} went on, {tried - went_on} resumed)", tried, lost])
        counts = damages(Path(parent, "damages"), given.damages, given.seed)
        found.append(["damaged snapshot file", *counts])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
