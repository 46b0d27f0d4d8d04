"""One small grid, of runs that finish and runs that do not, and what it leaves."""

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace

import pytest

from recall_lightning.compare import command
from recall_lightning.compare.command import main
from recall_lightning.compare.grid import run_all, threads_per_run
from recall_lightning.compare.plan import Comparison, parse_settings
from recall_lightning.compare.results import load_runs
from recall_lightning.compare.tables import threads_of
from recall_lightning.methods.table import METHODS

RECIPE = """
trainer:
  accelerator: cpu
  callbacks:
    - class_path: compared_parts.Batches
data:
  class_path: DigitsStream
  init_args: {num_tasks: 2, epochs_per_task: 1, batch_size: 32, eval_batch_size: 512}
model:
  class_path: ClassifierModule
  init_args:
    num_classes: 10
    model:
      class_path: compared_parts.Net
forgetting:
  monitor: val/acc
recall:
  merge_first_task: false
"""
PARTS = """
import hashlib, os, signal, time
from pathlib import Path
from lightning.pytorch import Callback, LightningDataModule
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

class Batches(Callback):
    def __init__(self):
        self.digest = hashlib.sha256()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for part in batch:
            self.digest.update(part.numpy().tobytes())
    def on_train_end(self, trainer, pl_module):
        Path(trainer.log_dir, "batches").write_text(self.digest.hexdigest())

class Fails(Callback):
    def on_train_start(self, trainer, pl_module):
        if trainer.datamodule.seed == 1:
            raise RuntimeError("it broke\\nin two")
        print("last words")
        os.kill(os.getpid(), signal.SIGKILL)

class Quits(Callback):
    def on_train_start(self, trainer, pl_module):
        os._exit(9)

class Unseeded(LightningDataModule):
    def __init__(self, tasks: int = 2):
        super().__init__()
    def task_at(self, epoch):
        return epoch

class Writes(Callback):
    def __init__(self, file: str):
        self.file = file
    def on_train_end(self, trainer, pl_module):
        Path(self.file).write_text("new")

class Endless(Callback):
    def on_train_start(self, trainer, pl_module):
        Path(trainer.log_dir, "pid").write_text(str(os.getpid()))
        time.sleep(600)
"""
ROWS = ["finetune", "joint", "recall plasticity=0.8"]
FEW = ["--", "--trainer.limit_train_batches", "2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "compared_parts.py").write_text(PARTS)
    (folder / "tiny.yaml").write_text(RECIPE)
    sys.path.insert(0, str(folder))
    yield folder / "tiny.yaml"
    sys.path.remove(str(folder))
    sys.modules.pop("compared_parts", None)


def arguments(recipe, out, *more, methods="finetune,joint"):
    sweep = ["--sweep", "recall.plasticity=0.8"]
    given = ["-c", recipe, "--methods", methods, *sweep, "--seeds", "2", "--jobs", "2"]
    return [str(each) for each in (*given, "--out", out, *more)]


@pytest.fixture(scope="module")
def grid(recipe):
    """The folder of a comparison of which a part fails, and its exit code."""
    out = recipe.parent / "out"
    failing = "Fails=finetune:--trainer.callbacks+=compared_parts.Fails"
    with pytest.raises(SystemExit) as stopped:
        main(arguments(recipe, out, "--variant", failing, *FEW))
    return out, stopped.value.code


def test_failures_are_survived_and_told_by_the_exit_code(grid):
    out, code = grid
    assert code == 1
    assert {(run.label, run.seed) for run in load_runs(out)} == {
        (r, s) for r in ROWS for s in (0, 1)
    }


def test_what_a_run_printed_is_in_its_log_even_if_it_was_killed(grid):
    out, _ = grid
    assert "last words" in (out / "Fails" / "seed_0" / "train.log").read_text()
    log = (out / "Fails" / "seed_1" / "train.log").read_text()
    assert log.strip().endswith("RuntimeError: it broke in two")
    assert not list(out.glob("Fails/*/run.json"))


def test_a_seed_gives_every_method_the_same_weights_and_the_same_batches(grid):
    out, _ = grid
    starts, orders = {}, {}
    for run in load_runs(out):
        starts.setdefault(run.seed, set()).add(run.initial_weights)
        if run.method != "joint":
            file = next(out.glob(f"{run.label.replace(' ', '_')}/seed_{run.seed}/batches"))
            orders.setdefault(run.seed, set()).add(file.read_text())
    for found in (starts, orders):
        assert [len(each) for each in found.values()] == [1, 1]
        assert found[0] != found[1]


def test_a_run_is_what_fit_leaves_and_what_it_cost(grid):
    out, _ = grid
    folder = out / "recall_plasticity=0.8" / "seed_1"
    record = json.loads((folder / "task_matrix.json").read_text())
    (run,) = [r for r in load_runs(out) if (r.label, r.seed) == (ROWS[2], 1)]
    assert run.metrics == record["metrics"]
    assert run.matrix == record["matrix"]
    assert run.seconds == record["seconds"]
    assert 0 < run.hook_seconds < run.wall_seconds
    assert run.extra_bytes >= 4 * (64 * 16 + 16 + 16 * 10 + 10)  # one snapshot
    assert run.swept == {"recall.plasticity": "0.8"}
    assert "--recall.plasticity=0.8" in (folder / "command.txt").read_text()
    assert "plasticity: 0.8" in (folder / "config.yaml").read_text()
    joint = [r for r in load_runs(out) if r.label == "joint"]
    assert [(r.extra_bytes, r.needs_old_data) for r in joint] == [(None, True)] * 2


def test_tables_and_figure_hold_what_finished(grid):
    out, _ = grid
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [row for row in ROWS for _ in (0, 1)]
    page = (out / "results.md").read_text()
    for row in ("| finetune |", "| joint † |", "| recall plasticity=0.8 |"):
        assert row in page
    assert "2 of 8 runs have not finished: Fails, seed 0; Fails, seed 1." in page
    assert "| Fails" not in page
    assert "same weights" not in page
    assert (out / "pareto.png").read_bytes()[1:4] == b"PNG"


def test_the_report_has_all_runs_in_a_table_one_of_each_method_and_what_is_missing(grid):
    page = (grid[0] / "report.html").read_text()
    for row in ROWS:
        assert f'<th scope="row">{row}</th>' in page
        assert page.count(f">{row}</h2>") + page.count(f">{row} (recall)</h2>") == 1
    assert "2 of 8 runs have not finished: Fails, seed 0; Fails, seed 1." in page
    assert "that with seed 0, unless" in page
    assert "beside its settings" in page


def test_a_report_that_cannot_be_written_fails_nothing(grid, recipe, tmp_path, capsys):
    out = copied(grid, tmp_path / "out")
    (out / "report.html").unlink()
    (out / "finetune" / "seed_0" / "task_matrix.json").write_text("[")
    main(arguments(recipe, out, *FEW))
    said = capsys.readouterr()
    assert "no report.html was written: " in said.err
    assert "results.md, results.csv, pareto.png\n" in said.out


def test_started_again_it_skips_what_is_done(grid, recipe, capsys):
    out, _ = grid
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*/run.json")}
    main(arguments(recipe, out, *FEW))
    assert "6 of 6 runs are done already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*/run.json")} == before


def copied(grid, out):
    return shutil.copytree(grid[0], out)


def test_a_folder_that_was_moved_is_gone_on_with(grid, recipe, tmp_path, capsys):
    main(arguments(recipe, copied(grid, tmp_path / "moved"), *FEW))
    assert "6 of 6 runs are done already" in capsys.readouterr().out


def test_results_of_other_code_or_data_are_done_anew_and_never_mixed_in(
    grid, recipe, tmp_path, capsys, monkeypatch
):
    out = copied(grid, tmp_path / "out")
    tried = []
    monkeypatch.setattr(command, "run_all", lambda runs, *_: tried.extend(runs) or {})
    parts = recipe.parent / "compared_parts.py"
    parts.write_text(PARTS + "# other code")
    try:
        main(arguments(recipe, out, *FEW))
    finally:
        parts.write_text(PARTS)
    assert len(tried) == 6
    said = "done anew, as something has changed since: 6 (module compared_parts)"
    assert said in capsys.readouterr().out
    assert load_runs(out) == []
    assert not (out / "results.md").exists()


def test_a_file_that_changes_while_a_run_reads_it_fails_the_run(recipe, tmp_path):
    writing = "writing=finetune:--trainer.callbacks+=compared_parts.Writes"
    settings = parse_settings([], [], [writing], list(METHODS))
    data = tmp_path / "data.txt"
    data.write_text("old")
    given = ("--trainer.callbacks.file", str(data), "--trainer.limit_train_batches", "2")
    settings = tuple(replace(each, arguments=(*each.arguments, *given)) for each in settings)
    compared = Comparison((str(recipe),), settings, (0,), tmp_path / "out")

    class Listening:
        def started(self, run):
            pass

        def ended(self, run, failure, seconds):
            pass

    (failure,) = run_all(compared.runs(), 1, Listening()).values()
    assert failure.reason == f"{data} has changed since the comparison began"
    assert load_runs(tmp_path / "out") == []


def test_a_first_try_that_came_to_nothing_binds_its_folder_to_nothing(
    recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "run_all", lambda *_: {})
    out = tmp_path / "out"
    main(arguments(recipe, out, "--", "--trainer.max_epochs", "1"))
    main(arguments(recipe, out, *FEW))
    assert json.loads((out / "comparison.json").read_text())["arguments"] == FEW[1:]


@pytest.mark.parametrize(("given", "threads"), [(None, 1), ("3", 3), ("2,1", 2), ("", 1)])
def test_a_run_has_the_threads_of_the_environment_or_one(given, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_per_run() == threads


def test_the_threads_are_told_with_the_seconds(grid):
    out, _ = grid
    assert {run.threads for run in load_runs(out)} == {threads_per_run()}
    assert f"validation, {threads_of(load_runs(out))} a run." in (out / "results.md").read_text()


def test_another_comparison_is_refused_in_the_same_folder(grid, recipe, capsys):
    out, _ = grid
    with pytest.raises(SystemExit) as stopped:
        main(arguments(recipe, out, "--", "--trainer.limit_train_batches", "3"))
    assert stopped.value.code == 2
    assert "holds a comparison of" in capsys.readouterr().err


def test_two_commands_do_not_share_a_folder(grid, recipe, capsys):
    out, _ = grid
    with (out / "comparison.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main(arguments(recipe, out, *FEW))
    assert "in use by another comparison" in capsys.readouterr().err


def test_a_run_that_ends_its_process_is_told_by_its_exit_code(recipe, tmp_path, capsys):
    quits = ["--variant", "Quits=finetune:--trainer.callbacks+=compared_parts.Quits"]
    with pytest.raises(SystemExit):
        main(["-c", str(recipe), "--methods", "", *quits, "--seeds", "1", "--out", str(tmp_path)])
    assert "failed: Quits, seed 0: ended with exit code 9, " in capsys.readouterr().err


def test_a_damaged_list_of_what_is_compared_is_named(grid, recipe, tmp_path, capsys):
    out = copied(grid, tmp_path / "out")
    (out / "comparison.json").write_text('{"recipes": [')
    with pytest.raises(SystemExit):
        main(arguments(recipe, out, *FEW))
    assert f"{out / 'comparison.json'} is damaged" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(recipe, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(arguments(recipe, tmp_path))
    assert "holds something else" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sweep", "recall.keeep=1,2"], "recall plasticity=0.8 keeep=1: "),
        (["--variant", "a=recall:--recall.every never"], "a: "),
        (["--variant", "a=recall:--recall.rule unifrom"], "a: "),
        (["--variant", "a=finetune:--modle.x 1"], "a: "),
        (["--variant", "a=magic:--x 1"], f"unknown method 'magic': use {', '.join(METHODS)}"),
        (["--methods", "finetune,magic"], "unknown method 'magic'"),
        (["--jobs", "0"], "--jobs 0 must be 1 or more"),
        (["--jobs", "many"], "argument --jobs: invalid int value"),
        (["--seeds", "0"], "--seeds 0 must be a positive number"),
        (["--first-seed", "-1"], "--first-seed -1 must be"),
        (["-c", "none.yaml"], "the recipe none.yaml does not exist"),
        (["--joint-reference", "upper"], "--joint-reference 'upper' must be one of the rows"),
        (["--out", ""], "no output folder"),
        (["--", "-c", "other.yaml"], "-c stands after --: name all recipes by -c before it"),
        (["--", "--trainer.max_epohs", "1"], "finetune: "),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_runs(
    more, message, recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "start_server", lambda imports: None)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(arguments(recipe, out, *more))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"recall-lightning compare: error: {message}")
    assert not out.exists()


def test_data_without_an_argument_for_the_seed_is_told_what_it_lacks(recipe, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(re.sub(r"DigitsStream\n.*", "compared_parts.Unseeded", recipe.read_text()))
    with pytest.raises(SystemExit):
        main(arguments(own, tmp_path / "out", *FEW))
    said = "no argument 'seed' of Unseeded; there are tasks; compare gives each run's seed to the"
    assert f"{said} data: add seed: int = 0 to it" in capsys.readouterr().err


def test_an_interrupt_stops_the_runs_and_nothing_is_left_of_them(recipe, tmp_path):
    endless = ["endless=finetune:--trainer.callbacks+=compared_parts.Endless"]
    settings = parse_settings([], [], endless, list(METHODS))
    compared = Comparison((str(recipe),), settings, (0, 1), tmp_path / "out")
    pids = []

    class Interrupting:
        def started(self, run):
            if run.seed == 0:
                return
            while not all((r.folder / "pid").exists() for r in compared.runs()):
                time.sleep(0.05)
            pids.extend(int((r.folder / "pid").read_text()) for r in compared.runs())
            raise KeyboardInterrupt

        def ended(self, run, failure, seconds):
            raise AssertionError("no run ends by itself")

    with pytest.raises(KeyboardInterrupt):
        run_all(compared.runs(), 2, Interrupting())
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list((tmp_path / "out").glob("*/*/run.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interrupt_it_says_how_to_go_on(
    number, grid, recipe, tmp_path, capsys, monkeypatch
):
    out = copied(grid, tmp_path / "out")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    monkeypatch.setattr(command, "run_all", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stopped:
        main(arguments(recipe, out, *FEW))
    assert stopped.value.code == 130
    assert "interrupted with 6 of 6 runs done; the same command goes on" in capsys.readouterr().err
