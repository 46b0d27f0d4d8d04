"""Processes that a test starts: each in a folder of its own, and none outlives its test.

Tests that use this carry ``pytest.mark.processes``.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OF_WANDB = "WANDB_SERVICE"  # this process's own, which would go on holding a killed one's run
OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

OF_THE_SERVER = (
    *("lightning.pytorch.loggers", "matplotlib.figure", "sklearn.cluster"),
    *("torch.utils.tensorboard", "tests.support.sharded_runs", "tests.support.adapter_runs"),
)
"""What the process that others are forked from imports: what they would, and computes nothing."""

PATIENCE = 10  # seconds that other processes of a group have to end after the first


class Ended(NamedTuple):
    """How a process ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def run_python(*arguments, folder, fails=False, timeout=180, **variables):
    """Run Python on arguments, in a folder, with one thread, and return how it ended.

    It imports this checkout, and has a port of its own for processes that it starts. All of them
    are killed when it takes too long, and where it leaves any behind, which fails too.

    Args:
        arguments: Of the interpreter: ``"-c", code`` or ``"-m", module, …``.
        folder: Where it runs.
        fails: Whether it is meant to end with another code than 0.
        timeout: Seconds.
        variables: Of its environment, beside this process's.
    """
    left_out = {*OF_A_LAUNCHER, OF_WANDB}
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=own | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        _, err = process.communicate()
        raise TimeoutError(f"{arguments} took more than {timeout} s: {err[-3000:]}") from None
    assert not left_behind(process.pid), f"{arguments} left processes behind"
    assert fails == (process.returncode != 0), f"{arguments} ended with {process.returncode}: {err}"
    return Ended(process.returncode, out, err)


def tracked_files():
    """Return the files that git keeps; None where this is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def exit_code_of(function, *arguments, timeout=120):
    """Call a function in a process forked from one with imports done; return how it ended.

    A negative code is the signal that it died of.
    """
    process = _server().Process(target=_in_own_group, args=(function, *arguments))
    process.start()
    process.join(timeout)
    late = process.exitcode is None
    kill_group(process.pid)
    process.join()
    if late:
        raise TimeoutError(f"{function.__name__}{arguments} took more than {timeout} s")
    return process.exitcode


def run_ranks(module, *arguments, folder, processes=2, timeout=400):
    """Run a module in processes that know of each other, as those that a launcher has started.

    They are forked from one with imports done.

    Args:
        module: Its name; what it does as ``__main__`` is run.
        arguments: What it finds in ``sys.argv``.
        folder: Where they run, and what they write is kept, as ``rank_N.log``.
        processes: How many.
        timeout: Seconds.
    """
    port = free_port()
    group = [
        _server().Process(
            target=_in_own_group,
            args=(_as_rank, module, list(map(str, arguments)), folder, rank, processes, port),
        )
        for rank in range(processes)
    ]
    deadline = time.monotonic() + timeout
    for each in group:
        each.start()
    while any(each.exitcode is None for each in group) and time.monotonic() < deadline:
        if any(each.exitcode for each in group):  # the others would wait for it
            deadline = min(deadline, time.monotonic() + PATIENCE)
        time.sleep(0.02)
    codes = [each.exitcode for each in group]
    for each in group:
        kill_group(each.pid)
        each.join()
    said = "\n".join(Path(folder, f"rank_{n}.log").read_text()[-3000:] for n in range(processes))
    assert codes == [0] * processes, f"{module} {arguments} ended with {codes}: {said}"


def _server():
    """Return what starts processes that are forked from one, which imports once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(OF_THE_SERVER))
    return context


def _as_rank(module, arguments, folder, rank, processes, port):
    with open(Path(folder, f"rank_{rank}.log"), "w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    for name in (*OF_A_LAUNCHER, OF_WANDB):
        os.environ.pop(name, None)
    if processes > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {"WORLD_SIZE": processes, "NODE_RANK": 0, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in (address | place).items()}
    runpy.run_module(module, run_name="__main__")


def _in_own_group(function, *arguments):
    os.setsid()
    function(*arguments)


def left_behind(group):
    """Give the processes of a group some seconds to end; kill and return those that don't."""
    deadline = time.monotonic() + PATIENCE
    while (living := members(group)) and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_group(group)
    return living


def members(group):
    """Return the ids of a group's processes, without those that have ended unread."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def kill_group(group):
    """Kill the processes of a group, if there are any."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
