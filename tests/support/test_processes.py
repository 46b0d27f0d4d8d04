import os
import sys
import time
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.processes import ROOT, exit_code_of, run_python, run_ranks

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


def test_ranks_know_of_each_other_and_run_in_their_folder(tmp_path):
    run_ranks(__name__, "writes", folder=tmp_path, processes=3)
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["of 3"] * 3
    assert (tmp_path / "rank_1.log").read_text() == "rank 1\n"


def test_where_a_rank_fails_the_others_are_ended_and_it_is_told_what_it_wrote(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    with pytest.raises(AssertionError, match=r"ended with \[None, 1\](.|\n)*it broke"):
        run_ranks(__name__, "fails", folder=tmp_path)
    with pytest.raises(AssertionError, match=r"ended with \[None, None\]"):
        run_ranks(__name__, "sleeps", folder=tmp_path, timeout=2)
    assert until_killed(tmp_path)


if __name__ == "__main__":
    rank = os.environ["LOCAL_RANK"]
    print("rank", rank)
    if sys.argv[1] == "writes":
        Path(rank).write_text(f"of {os.environ['WORLD_SIZE']}")
    elif sys.argv[1] == "fails" and rank == "1":
        raise SystemExit("it broke")
    else:
        Path("pid").write_text(str(os.getpid()))
        time.sleep(60)
