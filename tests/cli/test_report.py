"""``recall-lightning report``: from runs' folders to one page."""

import json
import math

import pytest

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.cli.main import main
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.metrics.task_matrix_file import write_task_matrix
from tests.support.training import Plain, loader, quiet_trainer


@pytest.fixture
def folder(tmp_path):
    matrix = [[0.9, 0.1], [math.nan, 0.8]]
    measured = [{"step": 10, "scores": [0.9, 0.1]}]
    record = TaskRecord("val/acc", True, ["a", "b"], matrix, measurements=measured)
    write_task_matrix(record, tmp_path / "mine")
    return tmp_path / "mine"


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, args)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("recall-lightning report: error:")
    assert said.count("\n") == 1
    return said


def test_a_folder_becomes_a_page(folder, tmp_path, capsys):
    main(["report", str(folder), "--out", str(tmp_path / "new" / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'page.html'}\n"
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "What was lost of “a” is not known" in page
    assert "holds no config.yaml" in page


def test_only_a_report_is_replaced(folder, tmp_path, capsys):
    out = tmp_path / "train.py"
    out.write_text("print(1)")
    assert f"{out} is there and is no HTML page" in refused(capsys, folder, "--out", out)
    assert out.read_text() == "print(1)"
    said = refused(capsys, folder, "--out", out / "page.html")
    assert f"{out} cannot be read or written (File exists): name another place" in said
    for _ in range(2):
        main(["report", str(folder), "--out", str(tmp_path / "page.html")])


def test_several_folders_of_one_name_are_told_apart(folder, tmp_path):
    write_task_matrix(TaskRecord("val/acc", True, ["a"], [[0.5]]), tmp_path / "other" / "mine")
    out = tmp_path / "page.html"
    main(["report", str(folder), str(tmp_path / "other" / "mine"), "--out", str(out)])
    assert "other/<wbr>mine" in out.read_text()


def test_what_is_wrong_is_one_line_and_nothing_is_written(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert "required" in refused(capsys)
    assert "holds no task_matrix.json" in refused(capsys, tmp_path, "--out", out)
    assert "named twice" in refused(capsys, folder, folder, "--out", out)
    assert "is a folder" in refused(capsys, folder, "--out", tmp_path)
    for file, text, complaint in (
        ("merges.json", "[{}]", "holds no merges"),
        ("merges.json", "{}", "must hold a list"),
        ("config.yaml", "a: [", "cannot be read as YAML"),
        ("environment.json", "nothing", "cannot be read as JSON"),
        ("task_matrix.json", "{}", "is no task matrix"),
        ("task_matrix.json", '{"monitor": "m", "mode": "max", "tasks": ["a"], "matrix": [[1, 2]]}',
         "2 scores of 1 tasks"),
        ("task_matrix.json", '{"monitor": "m", "mode": "max", "tasks": ["a"], "matrix": []}',
         "rows are not of its tasks"),
        ("task_matrix.json", '{"monitor": "m", "tasks": ["a"], "matrix": [[1]]}',
         "it is no task matrix, it lacks 'mode'"),
        ("task_matrix.json", '{"monitor": "m", "mode": "max", "tasks": ["a"], "matrix": [["x"]]}',
         "it is no task matrix (could not convert string to float: 'x')"),
    ):  # fmt: skip
        kept = (folder / file).read_text() if (folder / file).exists() else None
        (folder / file).write_text(text)
        said = refused(capsys, folder, "--out", out)
        assert complaint in said
        assert file in said
        if kept is None:
            (folder / file).unlink()
    assert not out.exists()


def test_merges_are_written_at_the_end_of_training_and_shown(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    recall, monitor = RecallCallback(every=0.5), ForgettingMonitor("val/acc")
    logger = CSVLogger(tmp_path, "run")
    model, scored = Plain(), [loader(task, 16, shuffle=False) for task in (0, 1)]
    for task in (0, 1):
        trainer = quiet_trainer(recall, monitor, logger=logger)
        trainer.fit(model, loader(task), scored)
    folder = tmp_path / "run" / "version_0"
    merges = json.loads((folder / "merges.json").read_text())
    assert [each["step"] for each in merges] == [each["step"] for each in recall.history]
    main(["report", str(folder), "--out", str(tmp_path / "page.html")])
    assert f"{len(merges)} merges" in (tmp_path / "page.html").read_text()


def test_a_folder_that_cannot_be_written_to_ends_no_training(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, "run", version=0)
    (tmp_path / "run" / "version_0" / "merges.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"merges\.json could not be written"):
        quiet_trainer(RecallCallback(), logger=logger).fit(Plain(), loader(0))
