import json
import math

import pytest

from recall_lightning.metrics.record import TaskRecord
from recall_lightning.metrics.task_matrix_file import read_task_matrix, write_task_matrix

FOUND = [{"visit": 0, "step": 12, "began": 9, "signal": "loss"}]


def record(**fields):
    matrix = fields.pop("matrix", [[1.0, 4.0], [1.5, 1.25]])
    return TaskRecord("val/loss", False, ["a", "b"], matrix, **fields)


def written(own, folder):
    write_task_matrix(own, folder)
    return json.loads((folder / "task_matrix.json").read_text())


def test_json_is_written_whole_and_without_what_it_does_not_know(tmp_path):
    content = written(record(matrix=[[1.0, math.nan], [math.inf, 1.0]]), tmp_path / "run")
    assert content["matrix"] == [[1.0, None], [None, 1.0]]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["task_matrix.json"]


def test_boundaries_are_only_there_where_they_were_looked_for(tmp_path):
    assert "found_boundaries" not in written(record(), tmp_path)
    assert written(record(found_boundaries=[]), tmp_path)["found_boundaries"] == []


def test_what_was_written_is_read(tmp_path):
    own = record(
        before=[6.0, 6.0],
        probe_names=["news"],
        probes=[[2.0], [2.5]],
        probes_before=[1.5],
        measurements=[{"step": 16, "scores": [1.5, 1.25], "probes": [2.5]}],
        boundaries=[(0, "a"), (8, "b")],
        seconds=1.5,
        trained=[1, 0],
        rolled_back=[1],
        found_boundaries=FOUND,
        retuned=[1],
        measured_early=[0],
    )
    assert read_task_matrix(written(own, tmp_path)) == own


def test_boundaries_of_another_form_are_refused():
    content = {"monitor": "a", "mode": "max", "tasks": ["a"], "matrix": [[0.5]]}
    with pytest.raises(ValueError, match=r"no task matrix.*began"):
        read_task_matrix(content | {"found_boundaries": [{"visit": 0, "step": 3}]})
