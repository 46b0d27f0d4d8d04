"""Many runs, some at a time, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from recall_lightning.compare.plan import PlannedRun
from recall_lightning.compare.results import FAILED, LOG_FILE, RUN_FILE

# What a run imports, before the first of them is forked.
_IMPORTS = ("recall_lightning.compare.worker", "sklearn.cluster", "sklearn.datasets")


@dataclass(frozen=True)
class Failure:
    """Why a run did not finish.

    Attributes:
        reason: What was raised, or the signal or exit code that ended it.
        log: All that it printed.
    """

    reason: str
    log: Path


class Listener(Protocol):
    """What is told of runs as they start and end."""

    def started(self, run: PlannedRun) -> None:
        """Called when a run has its process."""

    def ended(self, run: PlannedRun, failure: Failure | None, seconds: float) -> None:
        """Called when its process is gone, after the next run was started."""


@dataclass
class _Running:
    run: PlannedRun
    process: BaseProcess
    since: float


def run_all(runs: Sequence[PlannedRun], jobs: int, listener: Listener) -> dict[str, Failure]:
    """Do all runs, ``jobs`` at a time, in their order; one that fails stops no other.

    Args:
        runs: What to do.
        jobs: How many processes train at the same time.
        listener: Is told of everything that happens.

    Returns:
        The failures by the run's name.

    Raises:
        BaseException: Whatever interrupts the waiting, once all processes have been stopped.
    """
    pool = _Pool(deque(runs), jobs, listener)
    failures: dict[str, Failure] = {}
    try:
        pool.fill()
        while pool.running:
            ended = pool.next_ended()
            now = time.perf_counter()
            pool.fill()  # the cores have work again before the listener takes its time
            for each in ended:
                failure = _failure(each)
                if failure is not None:
                    failures[each.run.name] = failure
                listener.ended(each.run, failure, now - each.since)
    finally:
        pool.kill()
    return failures


class _Pool:
    """The processes that are running."""

    def __init__(self, waiting: deque[PlannedRun], jobs: int, listener: Listener) -> None:
        self.waiting, self.jobs, self.listener = waiting, jobs, listener
        self.context, self.threads = _context(), threads_per_run()
        self.running: dict[int, _Running] = {}

    def fill(self) -> None:
        """Start what is waiting, as far as there is room."""
        while self.waiting and len(self.running) < self.jobs:
            run = self.waiting.popleft()
            process = self.context.Process(target=_train, args=(run, self.threads))  # type: ignore[attr-defined]
            with _hidden_main():
                process.start()
            self.running[process.sentinel] = _Running(run, process, time.perf_counter())
            self.listener.started(run)

    def next_ended(self) -> list[_Running]:
        """Wait until one or more processes are gone."""
        ready = wait(list(self.running))
        ended = [each for sentinel, each in self.running.items() if sentinel in ready]
        for each in ended:
            del self.running[each.process.sentinel]
            each.process.join()
        return ended

    def kill(self) -> None:
        """Stop all processes at once; Lightning would take SIGTERM for a wish."""
        for each in self.running.values():
            each.process.kill()
        for each in self.running.values():
            each.process.join()


def _train(run: PlannedRun, threads: int) -> None:
    from recall_lightning.compare.worker import train  # the command needs it nowhere else

    train(run, threads)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a new process from executing this one's main script again: a run does not need it."""
    main = sys.modules["__main__"]
    names = [name for name in ("__spec__", "__file__") if name in vars(main)]
    hidden = [getattr(main, name) for name in names]
    for name in names:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in zip(names, hidden, strict=True):
            setattr(main, name, value)


def start_server(imports: Sequence[str] = ()) -> None:
    """Start what runs are forked from, which imports all they need; nothing where there is no fork.

    It imports while this process goes on: call it early.

    Args:
        imports: More modules to import, such as the model's.
    """
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        context.set_forkserver_preload([*_IMPORTS, *imports])
        # it inherits that Ctrl-C is ignored: this process stops it
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)


def _context() -> BaseContext:
    """Return how processes are started.

    Where the system can, a server imports everything once and each run is forked from it: it starts
    in milliseconds, and clean, because the server never computes. Elsewhere each run imports for
    itself.
    """
    offered = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in offered else "spawn")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_run() -> int:
    """Return how many threads a run computes with: ``OMP_NUM_THREADS``, or one.

    With one, small models train fastest, and times don't depend on who else uses the cores.

    Raises:
        ValueError: If the variable is no number of threads.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given and not (given.isdecimal() and int(given)):
        raise ValueError(f"OMP_NUM_THREADS={given!r} must be a number of threads, 1 or more")
    return int(given or 1)


def _failure(ended: _Running) -> Failure | None:
    code, log = ended.process.exitcode, ended.run.folder / LOG_FILE
    touched = ended.run.state.touched()
    if touched is not None:
        (ended.run.folder / RUN_FILE).unlink(missing_ok=True)
        return Failure(f"{touched} has changed since the comparison began", log)
    if code == 0 and ended.run.done:
        return None
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
        return Failure(f"killed by {name}{hint}", log)
    last = last_line(log)
    if code == FAILED and last:
        return Failure(last, log)
    words = f"its last words: {last}" if last else "without a word"
    return Failure(f"ended with exit code {code}, {words}", log)


def last_line(file: Path) -> str:
    """Return the last line of a text file that is not empty; nothing if there is none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
