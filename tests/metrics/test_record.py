import math

import pytest

from recall_lightning import metrics
from recall_lightning.metrics.record import TaskRecord


def record(**kwargs):
    fields = {
        "score_name": "val/loss",
        "higher_is_better": False,
        "task_names": ["a", "b", "c"],
        "matrix": [[1.0, 4.0, 5.0], [1.5, 1.25, 5.0]],
        "before": [6.0, 6.0, 6.0],
        "measurements": [{"step": 0, "scores": [6.0] * 3}, {"step": 8, "scores": [1.0, 4.0, 5.0]}],
        "boundaries": [(0, "a"), (8, "b")],
    }
    return TaskRecord(**(fields | kwargs))


def test_the_summary_is_that_of_the_metrics():
    summary = record().summary()
    assert summary["forgetting"] == 0.5
    assert summary["forward_transfer"] == float(
        metrics.forward_transfer(record().matrix, record().before, higher_is_better=False)
    )


def test_what_is_not_defined_is_left_out():
    assert set(record(matrix=[[1.0, 4.0, 5.0]]).summary()) == {"average", "plasticity"}
    gap = record(matrix=[[math.nan] * 3, [1.5, 1.25, 5.0]]).summary()
    assert gap == {"average": pytest.approx(1.375)}
    assert record(matrix=[]).summary() == {}


def test_a_task_that_starts_again_forgets_what_came_after():
    again = record()
    again.restart_from(1)
    assert (len(again.matrix), again.boundaries) == (1, [(0, "a")])
    again.restart_from(0)
    assert (again.matrix, again.boundaries) == ([], [])
    assert again.measurements == [{"step": 0, "scores": [6.0] * 3}]


def test_only_the_newest_tasks_own_measurement_stands_in_for_its_row():
    assert record(boundaries=[(0, "a")]).last_measured_of(0)["scores"] == [1.0, 4.0, 5.0]
    assert record().last_measured_of(1) is None
    assert record().last_measured_of(0) is None


def test_a_state_comes_back():
    again = TaskRecord("val/loss", higher_is_better=False)
    again.load_state_dict(record().state_dict())
    assert again == record()


def test_the_table_has_a_row_a_task_and_the_untrained_one():
    lines = record().table().split("\n")
    assert [line.split("  ")[0] for line in lines] == ["val/loss", "before", "after a", "after b"]


def found(*steps):
    return [{"visit": n, "step": s, "began": s - 3, "signal": "loss"} for n, s in enumerate(steps)]


def test_boundaries_of_several_fits_add_up():
    own = record()
    own.find(found(12))
    own.find(found(12, 30))
    own.find([])
    assert own.found_boundaries == found(12, 30)


def test_what_was_found_in_a_task_that_starts_again_is_forgotten():
    own = record()
    own.find(found(6, 12))
    own.restart_from(1)
    assert own.found_boundaries == found(6)


def test_boundaries_that_were_found_are_marked_in_curves():
    own = record()
    own.find(found(12, 30))
    figure = own.curves_figure({"merge": [4]})
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "boundary found"
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [9, 27]


def test_a_row_that_was_measured_before_a_merge_was_made_again_says_so():
    own = record(measurements=[{"step": 16, "scores": [1.5, 1.25, 5.0]}])
    own.retune(16)
    own.retune(16)
    assert list(own.rows("before"))[1:] == ["after a", "after b, before retuning"]
    assert own.retuned == [1]
    own.restart_from(1)
    assert own.retuned == []


def test_a_row_of_before_its_tasks_end_says_so_until_it_is_measured_again():
    own = record(probes=[[], []])
    own.finish({"scores": [2.0, 1.0]}, task=0, early=True)
    assert list(own.rows("before"))[-1].endswith(", measured before its end")
    own.measure_again(24, [3.0, 1.5])
    assert own.matrix[-1] == [3.0, 1.5]
    assert not own.last_is_early


def test_a_rollback_to_a_row_of_before_its_tasks_end_says_so():
    own = record(probes=[[], []], measured_early=[0])
    own.roll_back(16)
    assert own.measured_early == [0, 1]


def test_a_row_that_a_merge_came_after_is_not_of_it():
    own = record(measurements=[{"step": 8, "scores": [1.0, 4.0, 5.0]}])
    own.retune(16)
    assert own.retuned == []
