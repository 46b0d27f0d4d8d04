"""Runs that are repeated, of which the median is shown."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of several calls, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def medians_of_processes(
    module: str,
    arguments: Sequence[str],
    repeats: int,
    environment: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Start a benchmark's module again and again, each time in a process of its own.

    Args:
        module: What ``python -m`` starts; the last line that it prints is a JSON object of numbers.
        arguments: Its command line.
        repeats: How often.
        environment: Variables to set beside those that are there.

    Returns:
        The median of each number.

    Raises:
        SystemExit: With what a process that fails wrote on stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    found = []
    for _ in range(repeats):
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | dict(environment or {})
        )
        if ended.returncode:
            raise SystemExit(ended.stderr)
        found.append(json.loads(ended.stdout.splitlines()[-1]))
    return {name: statistics.median(one[name] for one in found) for name in found[0]}
