"""Kill, starve and damage runs, and count what they survive.

    python -m benchmarks.faults [--kills 400] [--damages 10000] [--seed 1000]

The faults are those of ``python -m tests.faults``, which this starts. Writes
``benchmarks/results/faults.md``.
"""

import json
import subprocess
import sys

from benchmarks.support.machine import machine
from benchmarks.support.pages import ROOT, write_page
from benchmarks.support.tables import table

ABOUT = """\
A **kill** is SIGKILL at one of a run's events, drawn by seed: before or after a hook of the
Trainer, a measurement, a merge and each weight in it, an optimizer step, a checkpoint, a write, a
flush, a rename. Every third run is killed once more after it was resumed. It survives if weights,
optimizer, schedulers, task matrix and coefficients end bit for bit as in a run that was not killed.
The Trainer is one of Lightning's defaults: sanity check, logger, progress bar; it saves every step.

A **failed write** is one of a run's writes that ends with "No space left on device", each in a run
of its own, without a logger. It survives if the run goes on, or stops and resumes, to the same end
bit for bit, and no half file is left.

**Damage** to a snapshot's file is a byte changed, lost or added, a page of zeros, a truncation, or
halves exchanged. It survives if the file is refused by name."""


def main() -> None:
    command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ended.returncode or not ended.stdout.startswith("["):
        print(ended.stdout)
        sys.exit(ended.returncode)  # its help, or an error that it told
    found = json.loads(ended.stdout.splitlines()[-1])
    rows = [[name, str(tried), str(tried - lost), str(lost)] for name, tried, lost in found]
    write_page(
        "faults",
        f"What runs survive. {machine()}.",
        ABOUT,
        table(["fault", "tried", "survived", "lost"], rows),
    )


if __name__ == "__main__":
    main()
