"""The sentences of a report, of runs that went one way and another."""

import math

from recall_lightning.metrics.record import TaskRecord
from recall_lightning.report.words import boundaries_found, cost, learned, left, lost

NAN = math.nan


def of(matrix, higher_is_better=True, **more):
    names = ["a", "b", "c"][: max(map(len, matrix))]
    return TaskRecord("val/score", higher_is_better, names, matrix, **more)


def test_a_run_that_forgot_says_how_much_and_what_most():
    said = lost(of([[0.9, 0.1, 0.1], [0.8, 0.9, 0.1], [0.5, 0.8, 0.9]]))
    assert said == (
        "On average over 2 earlier tasks a task scores 0.250 worse at the end than at its best "
        "since its own training; “a” lost most, 0.400: it fell from 0.900 to 0.500."
    )


def test_what_several_tasks_score_at_the_end_is_said_where_it_is_known():
    assert left(of([[0.9, 0.1], [0.5, 0.8]])) == "The 2 tasks score 0.650 on average at the end."
    assert left(of([[0.9, 0.1], [NAN, 0.8]])) is None
    assert left(of([[0.9]])) is None


def test_where_lower_is_better_a_score_that_rose_is_worse():
    record = of([[1.0, 4.0], [1.5, 1.25]], higher_is_better=False)
    assert lost(record).endswith("0.500 worse at the end than at its best since its own training: "
                                 "it rose from 1.000 to 1.500.")  # fmt: skip
    assert "1.125 on average in val/score (lower is better)" in learned(record)
    better = of([[1.0, 4.0], [0.5, 1.25]], higher_is_better=False)
    assert lost(better).startswith("Nothing was forgotten")


def test_a_run_that_forgot_nothing_says_so():
    said = lost(of([[0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.95, 0.9, 0.9]]))
    assert said == (
        "Nothing was forgotten: none of the 3 earlier tasks scores worse at the end than at its "
        "best since its own training."
    ).replace("3", "2")


def test_what_was_lost_is_never_called_nothing_however_little_it_is():
    assert "less than 0.001 worse" in lost(of([[0.9, 0.1], [0.8999, 0.9]]))


def test_a_task_that_lost_is_named_even_where_others_gained_more():
    said = lost(of([[0.5, 0.1, 0.1], [0.5, 0.9, 0.1], [0.9, 0.8, 0.9]]))
    assert "nothing was forgotten (0.150 better); “b” lost most, 0.100" in said


def test_one_task_has_nothing_to_forget():
    assert lost(of([[0.9]])) == "There was no earlier task to forget."
    assert "“a”, the only task, scores 0.900" in learned(of([[0.9]]))


def test_within_one_row_nothing_is_known_of_boundaries_that_were_found():
    record = of([[0.9]])
    record.found_boundaries = [{"visit": 0, "step": 66, "began": 60, "signal": "loss"}]
    assert lost(record).startswith("What was lost is not known")


def test_before_the_run_is_told_where_it_was_measured():
    assert learned(of([[0.9]], before=[0.1])).endswith("Before the run it was 0.100.")


def test_missing_rows_are_said_to_be_missing():
    record = of([[0.9, NAN], [NAN, NAN]])
    assert "“a” scores 0.900" in learned(record)
    assert "That of “b” was not measured and is left out." in learned(record)
    assert lost(record).startswith("What was lost of “a” is not known: it has no score")
    assert learned(of([[NAN]])).startswith("What was learned is not known")


def test_a_task_that_was_rolled_back_is_named():
    record = of([[0.9, 0.1], [0.9, 0.1]], rolled_back=[1])
    assert "1 task was rolled back (“b”)" in lost(record)


def test_limits_that_were_not_kept_are_told():
    exceeded = [{"task": "b", "name": "a", "value": 0.4, "limit": 0.1}]
    said = lost(of([[0.9, 0.1], [0.5, 0.8]]), exceeded)
    assert said.endswith("1 limit was not kept: “a” lost 0.400 after “b”, where 0.100 was allowed.")
    whole = [exceeded[0] | {"name": "estimated_forgetting", "value": 0.021, "limit": 0.01}]
    said = lost(of([[0.9, 0.1], [0.5, 0.8]]), whole)
    assert "estimated forgetting was 0.0210 after “b”, where 0.0100 was allowed" in said
    stopped = [exceeded[0], exceeded[0] | {"stopped": True}]
    assert lost(of([[0.9, 0.1], [0.5, 0.8]]), stopped).endswith("and the fit was stopped there.")
    infinite = [exceeded[0] | {"value": None}]
    assert "more than any number" in lost(of([[0.9, 0.1], [0.5, 0.8]]), infinite)


def test_held_out_sets_are_told_of_one_by_one():
    probes = {"probe_names": ["news", "code", "law"], "probes": [[0.3, 0.5, NAN]]}
    said = lost(of([[0.9]], probes_before=[0.5, 0.5, 0.5], **probes))
    assert "“news” scores 0.200 worse than before training" in said
    assert "“code” scores no worse than before training" in said
    assert "“law” has no score at the end" in said
    assert "nothing was measured before" in lost(of([[0.9]], **probes))


def test_a_task_that_came_back_has_its_visits_number():
    record = of([[0.9, 0.1], [0.5, 0.8], [0.95, 0.6]], trained=[0, 1, 0])
    assert "0.950 (“a (2)”)" in learned(record)
    assert lost(record).startswith("The one earlier task, “b”, scores 0.200 worse")


def test_the_cost_of_merges_is_part_of_that_of_training():
    merges = [{"probe_seconds": 1.0, "merge_seconds": 2.0}] * 2
    assert cost(of([[0.9]], seconds=12.0), merges) == (
        "Training took 12.0 s, validation included; 6.0 s of it went into 2 merges (50 %), "
        "not counting what is measured between merges."
    )
    assert cost(of([[0.9]], seconds=12.0), []).endswith("of merges nothing is recorded.")


def test_boundaries_that_were_found_are_told_by_where_they_were():
    places = [(60, 66, "loss"), (120, 124, "representations"), (190, 196, "loss")]
    found = [
        {"visit": visit, "step": step, "began": began, "signal": signal}
        for visit, (began, step, signal) in enumerate(places)
    ]
    assert boundaries_found(of([[0.9]], found_boundaries=found)) == (
        "3 boundaries were found that nobody had announced, after steps 60, 120 and 190, by the "
        "loss and the representations 4 to 6 steps later."
    )
    assert boundaries_found(of([[0.9]])) is None
