"""What a run's folder is read as."""

import json
import math
from pathlib import Path

import pytest

from recall_lightning.metrics.record import TaskRecord
from recall_lightning.metrics.task_matrix_file import write_task_matrix
from recall_lightning.report.run import distinct_names, read_run

MERGE = {"task": 0, "visit": 0, "step": 1, "coefficient": {"net": None}, "drift": {"net": 0.1}}


def test_a_record_that_was_written_is_read_again(tmp_path):
    probes = {"probe_names": ["news"], "probes": [[2.0], [3.0]], "probes_before": [2.0]}
    measured = [{"step": 4, "scores": [1.0, math.nan], "probes": [2.0]}]
    record = TaskRecord(
        "val/loss", False, ["a", "b"], [[1.0, 4.0], [1.5, 1.0]], [5.0, 5.0], **probes,
        measurements=measured, boundaries=[(0, "a"), (4, "b")], seconds=3.0, rolled_back=[1],
    )  # fmt: skip
    write_task_matrix(
        record, tmp_path, [{"task": "b", "name": "a", "value": math.inf, "limit": 0.1}]
    )
    run = read_run(tmp_path, "mine")
    assert repr(run.record) == repr(record)  # NaN is not equal to itself
    assert run.exceeded == [{"task": "b", "name": "a", "value": None, "limit": 0.1}]


def test_a_file_of_before_boundaries_and_limits_is_read(tmp_path):
    old = {"monitor": "m", "mode": "max", "tasks": ["a"], "before": None, "matrix": [[0.5]]}
    (tmp_path / "task_matrix.json").write_text(json.dumps(old))
    run = read_run(tmp_path, "old")
    assert (run.record.boundaries, run.exceeded, run.merges) == ([], None, None)
    assert run.method == "own Trainer"
    (tmp_path / "merges.json").write_text("[]")
    assert read_run(tmp_path, "old").method == "own Trainer, with merges"


@pytest.mark.parametrize("mode", [7, None, "upwards"])
def test_a_direction_that_is_none_is_refused(tmp_path, mode):
    content = {"monitor": "m", "mode": mode, "tasks": ["a"], "matrix": [[0.5]]}
    (tmp_path / "task_matrix.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"mode={mode!r} must be 'max' or 'min'"):
        read_run(tmp_path, "mine")


def test_the_rest_of_a_runs_files_may_lie_in_another_folder(tmp_path):
    write_task_matrix(TaskRecord("m", True, ["a"], [[0.5]]), tmp_path / "own")
    (tmp_path / "merges.json").write_text(json.dumps([MERGE]))
    (tmp_path / "config.yaml").write_text("{method: l2, l2: {strength: 1.0}, ewc: {}}")
    run = read_run(tmp_path / "own", "mine", tmp_path)
    assert run.settings == {"method": "l2", "l2": {"strength": 1.0}}
    assert list(run.last_merges) == ["a"]
    assert math.isnan(run.merges[0]["coefficient"]["net"])


def test_names_are_as_long_as_they_need_to_be():
    assert distinct_names([Path("/a/b/c")]) == ["b/c"]
    assert distinct_names([Path("/a/b/c"), Path("/x/b/c")]) == ["a/b/c", "x/b/c"]
    with pytest.raises(ValueError, match="named twice"):
        distinct_names([Path("/a/b"), Path("/a/b/../b")])
