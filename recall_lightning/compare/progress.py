"""What the terminal shows while a comparison runs."""

import math
import time
from collections.abc import Sequence
from statistics import mean

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from recall_lightning.compare.grid import Failure
from recall_lightning.compare.plan import Comparison, PlannedRun
from recall_lightning.compare.results import Run


class Progress:
    """A live table in a terminal; elsewhere a line for every run that ends.

    Args:
        comparison: What is run.
        jobs: Runs at the same time.
        console: Where to show it.
    """

    def __init__(self, comparison: Comparison, jobs: int, console: Console) -> None:
        self.comparison, self.jobs, self.console = comparison, jobs, console
        self.results: list[Run] = []
        self.total = len(comparison.settings) * len(comparison.seeds)
        self.failures: dict[str, Failure] = {}
        self._failed: list[str] = []  # labels
        self._running: dict[str, tuple[str, float]] = {}  # label and start by the run's name
        self._begun = time.perf_counter()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        """Show the table."""
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last state of the table on the screen."""
        if self._live is not None:
            self._live.stop()

    def started(self, run: PlannedRun) -> None:
        """Count a run as running."""
        self._running[run.name] = (run.setting.label, time.perf_counter())

    def finished(self, run: PlannedRun, result: Run, seconds: float) -> None:
        """Count a run as done."""
        self._running.pop(run.name, None)
        self.results.append(result)
        shown = ", ".join(
            f"{name} {result.metrics[name]:.3f}"
            for name in ("average", "forgetting")
            if name in result.metrics
        )
        self._say(f"done: {run.name}: {shown}, {seconds:.0f} s {self._state()}")

    def failed(self, run: PlannedRun, failure: Failure) -> None:
        """Count a run as failed, and say why."""
        self._running.pop(run.name, None)
        self._failed.append(run.setting.label)
        self.failures[run.name] = failure
        self._say(f"failed: {run.name}: {failure.reason} (see {failure.log}) {self._state()}")

    def seconds_left(self) -> float:
        """Return the expected seconds until all is done; NaN before anything is known."""
        known: dict[str, list[float]] = {}
        for run in self.results:
            known.setdefault(run.label, []).append(run.wall_seconds)
        if not known:
            return math.nan
        overall = mean(seconds for each in known.values() for seconds in each)
        expected = {
            setting.label: mean(known.get(setting.label, [overall]))
            for setting in self.comparison.settings
        }
        labels = [run.label for run in self.results] + self._failed
        work = sum(
            seconds * (len(self.comparison.seeds) - labels.count(label))
            for label, seconds in expected.items()
        )
        now = time.perf_counter()
        work -= sum(min(now - since, expected[label]) for label, since in self._running.values())
        return work / max(1, min(self.jobs, self.total - len(labels)))

    def table(self) -> Table:
        """Return the table as it is now."""
        better = {True: " ↑", False: " ↓"}[self.results[0].higher_is_better] if self.results else ""
        table = Table(title=f"comparison of {', '.join(self.comparison.recipes)}")
        table.caption = self._caption()
        table.add_column("method", overflow="fold")
        for head in ("done", "running", "failed", f"average{better}", "forgetting ↓"):
            table.add_column(head, justify="right", no_wrap=True)
        for setting in self.comparison.settings:
            table.add_row(*self._row(setting.label))
        return table

    def _row(self, label: str) -> list[str]:
        own = [run for run in self.results if run.label == label]
        running = sum(each == label for each, _ in self._running.values())
        failed = self._failed.count(label)
        return [
            escape(label),
            f"{len(own)}/{len(self.comparison.seeds)}",
            str(running or ""),
            f"[red]{failed}[/red]" if failed else "",
            *(_mean([r.metrics[m] for r in own if m in r.metrics]) for m in _SHOWN),
        ]

    def _caption(self) -> str:
        left = self.seconds_left()
        text = f"{duration(time.perf_counter() - self._begun)} gone"
        if not math.isnan(left) and len(self.results) + len(self._failed) < self.total:
            text += f", about {duration(left)} left"
        if not self.results and not self._failed:
            text += ", importing and starting" if not self._running else ""
        lines = [f"{escape(name)}: {escape(f.reason)}" for name, f in self.failures.items()]
        return "\n".join([text, *lines[-3:]])

    def _state(self) -> str:
        ended = len(self.results) + len(self._failed)
        left = self.seconds_left()
        about = "" if math.isnan(left) or ended == self.total else f", about {duration(left)} left"
        return f"({ended} of {self.total}{about})"

    def _say(self, line: str) -> None:
        if self._live is None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


_SHOWN = ("average", "forgetting")


def duration(seconds: float) -> str:
    """Write seconds as a person would.

    Example:
        >>> duration(42.3), duration(150), duration(7500)
        ('42 s', '2 min 30 s', '2 h 05 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" if values else ""
