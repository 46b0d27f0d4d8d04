import json
import math

import numpy as np
import pytest
from scipy import stats

from recall_lightning.compare.results import (
    Run,
    confidence_interval,
    gap_closed,
    load_runs,
    paired_difference,
    summarise,
)
from recall_lightning.weights.atomic import write_whole


def run(label, seed, average=0.5, **changes):
    fields = {
        "label": label, "method": label, "seed": seed, "swept": {}, "needs_old_data": False,
        "monitor": "val/acc", "mode": "max", "forgetting_variant": "since_trained",
        "tasks": ["a", "b"], "metrics": {"average": average}, "matrix": [[1.0, 0.0], [0.5, 0.5]],
        "seconds": 10.0, "hook_seconds": 1.0, "extra_bytes": 50, "training_bytes": 200,
        "initial_weights": "w", "wall_seconds": 12.0,
    }  # fmt: skip
    return Run(**(fields | changes))


def test_the_interval_is_that_of_a_one_sample_t_test():
    values = np.random.default_rng(0).normal(size=6)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = confidence_interval(values, level=0.9)
    assert interval.mean - interval.half_width == pytest.approx(low)
    assert interval.mean + interval.half_width == pytest.approx(high)


def test_the_paired_interval_is_that_of_a_paired_t_test_over_the_seeds_of_both():
    a, b = np.random.default_rng(1).normal(size=(2, 5))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_difference(dict(enumerate(a)) | {9: 1e6}, dict(enumerate(b)) | {8: -1e6})
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )
    assert found.count == 5


def test_few_values_have_no_interval():
    assert math.isnan(confidence_interval([1.0]).half_width)
    assert math.isnan(confidence_interval([]).mean)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gap_closed_is_the_same_for_a_score_and_its_negative(sign):
    finetune, joint, method = {0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.0}, {0: 2.5, 1: 2.0, 2: 9.0}
    closed = gap_closed(*({s: sign * v for s, v in d.items()} for d in (method, finetune, joint)))
    assert closed == {0: 75.0, 1: 0.0}


def test_a_gap_that_is_none_is_left_out():
    assert gap_closed({0: 0.7}, {0: 0.5}, {0: 0.50001}) == {}
    assert gap_closed({0: 0.0}, {0: 0.0}, {0: 0.0}) == {}


def test_a_summary_has_the_references_at_their_ends_and_shares_in_percent():
    averages = {"finetune": (0.2, 0.4), "joint": (0.8, 0.9), "mine": (0.5, 0.9)}
    runs = [run(label, s, each[s]) for s in (0, 1) for label, each in averages.items()]
    rows = {row.label: row for row in summarise(runs)}
    assert list(rows) == ["finetune", "joint", "mine"]
    assert [rows[name].value("gap_closed").mean for name in rows] == [0.0, 100.0, 75.0]
    assert rows["mine"].value("hook_share").mean == 10.0
    assert rows["mine"].value("memory_share").mean == 25.0
    assert rows["mine"].value("average").count == 2
    assert rows["mine"].value("nothing").count == 0


def test_what_was_not_measured_is_missing_rather_than_zero():
    (row,) = summarise([run("joint", 0, extra_bytes=None, hook_seconds=None, metrics={})])
    for name in ("average", "gap_closed", "extra_bytes", "memory_share", "hook_share"):
        assert row.value(name).count == 0


def test_runs_are_read_from_their_folders_and_unfinished_ones_left_out(tmp_path):
    for label, seed in (("b", 1), ("b", 0), ("a", 0)):
        folder = tmp_path / label / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(vars(run(label, seed)) | {"other": 1}))
    (tmp_path / "c" / "seed_0").mkdir(parents=True)
    assert load_runs(tmp_path) == [run("a", 0), run("b", 0), run("b", 1)]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.txt", "new\udc80")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_runs_of_another_state_than_the_comparisons_last_are_not_read(tmp_path):
    for seed, state in enumerate(
        [{"a.txt": "old", "torch": "2"}, {"a.txt": "new", "own": "1"}, {}]
    ):
        folder = tmp_path / "a" / f"seed_{seed}"
        folder.mkdir(parents=True)
        write_whole(folder / "run.json", json.dumps(vars(run("a", seed)) | {"state": state}))
    assert [each.seed for each in load_runs(tmp_path)] == [0, 1, 2]
    write_whole(tmp_path / "comparison.json", json.dumps({"state": {"a.txt": "new"}}))
    assert [each.seed for each in load_runs(tmp_path)] == [1]
