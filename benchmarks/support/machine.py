"""What a benchmark runs on, and that nothing else runs there."""

import os
import platform
import sys
import time
from importlib.metadata import version

IDLE = 0.3


def machine() -> str:
    """Describe the machine in a phrase that pages end their first paragraph with."""
    return f"{hardware()}; load average {os.getloadavg()[0]:.1f}"


def hardware() -> str:
    """Describe the machine, whatever else it does."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, lightning {version('lightning')}"
    )


def wait_until_idle(most: float) -> None:
    """Wait until the load is low, at most so many seconds; say on stderr if it was not."""
    deadline = time.monotonic() + most
    while os.getloadavg()[0] > IDLE and time.monotonic() < deadline:
        time.sleep(5)
    if os.getloadavg()[0] > IDLE:
        print(f"the machine is busy: load {os.getloadavg()[0]:.2f}", file=sys.stderr)
