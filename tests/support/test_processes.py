import os
import time
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.processes import ROOT, exit_code_of, run_python

pytestmark = pytest.mark.processes


def runs(folder):
    """Tell whether the process whose id it wrote there still runs."""
    status = Path("/proc", (folder / "pid").read_text().strip(), "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def until_killed(folder):
    deadline = time.monotonic() + 5
    while runs(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not runs(folder)


def test_a_process_runs_in_its_folder_with_one_thread_on_this_checkout(tmp_path):
    code = (
        "import os, recall_lightning as package;"
        "print(os.getcwd(), os.environ['OMP_NUM_THREADS'], package.__file__)"
    )
    shown = run_python("-c", code, folder=tmp_path).out.split()
    assert shown == [str(tmp_path), "1", str(ROOT / "recall_lightning" / "__init__.py")]


def test_what_it_says_is_shown_where_it_fails(tmp_path):
    with pytest.raises(AssertionError, match="ended with 3: no more"):
        run_python("-c", "import sys; sys.stderr.write('no more'); sys.exit(3)", folder=tmp_path)
    assert run_python("-c", "raise SystemExit(3)", folder=tmp_path, fails=True).code == 3


def test_children_left_behind_are_killed_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    code = (
        "import subprocess, sys; quiet = subprocess.DEVNULL;"
        "child = [sys.executable, '-c', 'import time; time.sleep(60)'];"
        "print(subprocess.Popen(child, stdout=quiet, stderr=quiet).pid, file=open('pid', 'w'))"
    )
    with pytest.raises(AssertionError, match="left processes behind"):
        run_python("-c", code, folder=tmp_path)
    assert until_killed(tmp_path)


def test_one_that_hangs_is_killed_with_its_children(tmp_path):
    code = (
        "import subprocess, sys; child = [sys.executable, '-c', 'import time; time.sleep(60)'];"
        "started = subprocess.Popen(child);"
        "print(started.pid, file=open('pid', 'w'), flush=True); started.wait()"
    )
    with pytest.raises(TimeoutError, match="took more than 2 s"):
        run_python("-c", code, folder=tmp_path, timeout=2)
    assert until_killed(tmp_path)


def test_a_forked_process_tells_how_it_ended():
    assert exit_code_of(os._exit, 4) == 4
    assert exit_code_of(os.abort) < 0
    with pytest.raises(TimeoutError, match="sleep"):
        exit_code_of(time.sleep, 60, timeout=1)
