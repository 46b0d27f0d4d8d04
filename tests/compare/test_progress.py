import io
import math

import pytest
from rich.console import Console

from recall_lightning.compare import progress as module
from recall_lightning.compare.grid import Failure
from recall_lightning.compare.plan import Comparison, Setting
from recall_lightning.compare.progress import Progress
from tests.compare.test_results import run


@pytest.fixture
def compared(tmp_path):
    settings = (Setting("finetune", "finetune"), Setting("[/b] ewc", "ewc"))
    return Comparison(("a.yaml",), settings, (0, 1), tmp_path)


def shown(progress):
    console = Console(file=io.StringIO(), width=150)
    console.print(progress.table())
    return console.file.getvalue()


def test_without_a_terminal_every_ended_run_is_a_line(compared):
    console = Console(file=io.StringIO(), width=40)
    with Progress(compared, 1, console) as progress:
        first, second, *_ = compared.runs()
        progress.started(first)
        progress.finished(first, run("finetune", 0, metrics={"average": 0.25}), 61)
        progress.failed(second, Failure("it broke", compared.out / "train.log"))
    one, two = console.file.getvalue().splitlines()
    assert one.startswith("done: finetune, seed 0: average 0.250, 61 s (1 of 4, about")
    assert two.startswith(f"failed: [/b] ewc, seed 0: it broke (see {compared.out}/train.log)")


def test_the_table_has_states_and_means(compared):
    progress = Progress(compared, 2, Console(file=io.StringIO()))
    first, second, third, _ = compared.runs()
    progress.finished(first, run("finetune", 0, metrics={"average": 0.25}), 1)
    progress.finished(third, run("finetune", 1, metrics={"average": 0.75}), 1)
    progress.started(second)
    table = shown(progress)
    assert "2/2" in table
    assert "0/2" in table
    assert "0.500" in table
    assert "average ↑" in table
    assert "[/b] ewc" in table
    progress.failed(second, Failure("it broke", compared.out))
    assert "it broke" in shown(progress)


def test_the_time_left_counts_what_runs_and_is_shared_by_the_jobs(compared, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    progress = Progress(compared, 2, Console(file=io.StringIO()))
    assert math.isnan(progress.seconds_left())
    first, second, *_ = compared.runs()
    progress.finished(first, run("finetune", 0, wall_seconds=10.0), 10)
    assert progress.seconds_left() == 3 * 10 / 2
    progress.started(second)
    clock[0] = 4.0
    assert progress.seconds_left() == (3 * 10 - 4) / 2
    progress.finished(second, run("[/b] ewc", 0, wall_seconds=30.0), 30)
    assert progress.seconds_left() == (10 + 30) / 2
