import csv
import io
import math

import pytest

from recall_lightning.compare.results import Interval, summarise
from recall_lightning.compare.tables import cell, csv_table, difference_table, markdown
from tests.compare.test_results import run


def scored(label, seed, average, **changes):
    metrics = {"average": average, "forgetting": 1 - average, "plasticity": 0.9}
    return run(label, seed, metrics=metrics, **changes)


def two_methods(**changes):
    return [scored("finetune", s, 0.25 + s / 8, **changes) for s in (0, 1)] + [
        scored("mine", s, 0.5 + s / 8, **changes) for s in (0, 1)
    ]


def written(runs, **changes):
    given = {"command": "compare", "seeds": [0, 1], "circumstances": "Idle."} | changes
    return markdown(runs, summarise(runs), **given)


def test_csv_has_a_line_a_run_and_a_column_a_swept_argument():
    runs = [run("a", 0, swept={"a.x": "1"}), run("b", 1, extra_bytes=None)]
    first, second = csv.DictReader(io.StringIO(csv_table(runs)))
    assert (first["label"], first["seed"], first["a.x"]) == ("a", "0", "1")
    assert (second["a.x"], second["extra_bytes"]) == ("", "")
    assert float(first["average"]) == 0.5


def test_differences_are_taken_seed_by_seed():
    runs = two_methods()
    table = difference_table(runs, summarise(runs), planned=2)
    assert "| mine | +0.250 ± 0.000 | -0.250 ± 0.000 |" in table
    assert "| finetune |" not in table


def test_a_cell_tells_when_seeds_are_missing():
    assert cell(Interval(1.0, 0.5, 3), planned=5) == "1.000 ± 0.500 (3)"
    assert cell(Interval(math.nan, math.nan, 0), planned=5) == "–"


@pytest.mark.parametrize(("mode", "direction"), [("max", "higher"), ("min", "lower")])
def test_the_page_names_command_metric_direction_seeds_and_variant(mode, direction):
    page = written(two_methods(mode=mode), command="recall-lightning compare -c a.yaml")
    for text in (
        "recall-lightning compare -c a.yaml", f"val/acc, {direction} is better", "seeds 0, 1",
        "since_trained", "Idle.",
    ):  # fmt: skip
        assert text in page


def test_methods_that_need_old_data_are_marked():
    page = written([*two_methods(), scored("joint", 0, 0.9, needs_old_data=True)])
    assert "| joint † |" in page
    assert "† reads data of earlier tasks" in page
    assert "†" not in written(two_methods())


def test_unequal_starts_are_told():
    runs = two_methods()
    assert "same weights" not in written(runs)
    other = scored("third", 1, 0.5, initial_weights="v")
    assert "from the same weights with seed 1:" in written([*runs, other])


def test_a_label_cannot_break_the_table():
    page = written([scored("a|b", 0, 0.5)])
    assert "| a\\|b |" in page
