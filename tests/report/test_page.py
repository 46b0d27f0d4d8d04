"""The page of a report: whole, well formed, and safe to open."""

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest

from recall_lightning.metrics.record import TaskRecord
from recall_lightning.report.page import report_page
from recall_lightning.report.run import Run

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


def record(**more):
    given = {
        "matrix": [[0.9, 0.1], [0.5, math.nan]],
        "before": [0.1, 0.1],
        "measurements": [
            {"step": 0, "scores": [0.1, 0.1]},
            {"step": 10, "scores": [0.9, 0.1]},
            {"step": 20, "scores": [0.5, math.nan]},
        ],
        "boundaries": [(0, "cats"), (10, "dogs")],
        "seconds": 60.0,
    }
    return TaskRecord("val/acc", True, ["cats", "dogs"], **(given | more))


def merge(visit, step, **more):
    by_block = {"coefficient": {"net.0": 0.4, "net.1": 0.5}, "drift": {"net.0": 0.1, "net.1": 0.2}}
    seconds = {"probe_seconds": 0.1, "merge_seconds": 0.2}
    return {"task": visit, "visit": visit, "step": step, **by_block, **seconds, **more}


FRONT = {
    "keep": 2.0,
    "plasticity": 0.95,
    "loss": {"snapshot": 3.0, "live": 0.5, "merged": 0.6},
    "divergence": {"live": 2.0, "merged": 1.5},
    "quadratic_forgetting": {"live": 0.5, "merged": 0.1},
    "front": [
        {"keep": 0.1, "plasticity": 0.99, "loss": 0.5, "divergence": 1.9},
        {"keep": 100.0, "plasticity": None, "loss": None, "divergence": None},
        {"keep": 10.0, "plasticity": 0.5, "loss": 1.0, "divergence": 0.8},
    ],
}
MERGED = Run(
    "runs/recall",
    record(),
    merges=[merge(1, 15), merge(1, 20, refitted="net.1", **FRONT)],
    settings={"method": "recall", "data": {"seed": 0}},
    environment={"torch": "2.0", "device": "cpu"},
)
PLAIN = Run("runs/plain", record(), settings={"method": "finetune"})


class Outline(HTMLParser):
    """Check that every tag that is opened is closed, and collect what can be looked at."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.headings = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, attribute):
        return [given[attribute] for _, given in self.tags if attribute in given]


MANY = [dataclasses.replace(each, name=f"{n}") for n, each in enumerate([PLAIN, MERGED] * 3)]


@pytest.fixture(
    params=[[MERGED], [PLAIN], [PLAIN, MERGED], MANY], ids=["merged", "plain", "both", "many"]
)
def page(request):
    return report_page(request.param)


def test_tags_balance_ids_are_unique_and_links_lead_to_them(page):
    outline = Outline(page)
    ids = outline.all("id")
    assert len(ids) == len(set(ids))
    links = {*outline.all("href"), *outline.all("xlink:href")}
    inside = {link for link in links if not link.startswith("data:image/png;base64,")}
    assert inside <= {f"#{each}" for each in ids}
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert set(outline.all("aria-labelledby")) <= set(ids)


def test_nothing_is_loaded_from_anywhere(page):
    outline = Outline(page)
    assert not outline.all("src")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert not re.search(r"url\((?!#)|@import", page)


def test_headings_come_in_order_and_pictures_and_tables_have_names(page):
    outline = Outline(page)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    steps = zip(outline.headings, outline.headings[1:], strict=False)
    assert all(later - earlier <= 1 for earlier, later in steps)
    named = [given for tag, given in outline.tags if tag == "svg" or "tabindex" in given]
    regions = [given["aria-label"] for given in named if given["role"] == "region"]
    assert len(regions) == len(set(regions))
    assert all(given["role"] in ("img", "region") and given["aria-label"] for given in named)
    assert all(given["scope"] for tag, given in outline.tags if tag == "th")
    tables = [tag for tag, _ in outline.tags]
    assert tables.count("table") == tables.count("caption")


def test_names_of_the_users_are_text():
    name = "<script>alert(1)</script>"
    run = dataclasses.replace(MERGED, name=name, settings={"method": name})
    run.record.task_names[:] = ["cats", name]
    try:
        page = report_page([run, PLAIN])
    finally:
        run.record.task_names[:] = ["cats", "dogs"]
    assert "script" not in {tag for tag, _ in Outline(page).tags}
    assert "&lt;script&gt;" in page


def test_what_was_merged_is_shown():
    page = report_page([MERGED])
    assert page.count("<svg") == 5
    assert "What was tried at the end of dogs" in page
    assert "merged: 95 % left" in page
    assert "With the merge of “dogs” the last layer, net.1, was fitted anew." in page
    assert '<th scope="row">made</th><td class="own">2</td><td class="own">95.0</td>' in page


def test_cells_have_equal_decimals_and_dashes_where_nothing_was_measured():
    page = report_page([PLAIN])
    assert '<td class="own">0.900</td><td>0.100</td>' in page
    assert '<td>0.500</td><td class="own">–</td>' in page
    assert '<th scope="row">lost</th><td>0.400</td>' in page


def test_several_runs_stand_side_by_side_over_the_same_scores():
    best = dataclasses.replace(PLAIN, name="b", record=record(measurements=[
        {"step": 1, "scores": [9.0, 0.1]}]))  # fmt: skip
    page = report_page([PLAIN, best])
    assert page.index('id="summary"') < page.index('id="run-0"')
    first, second = re.findall(r'<svg role="img".*?</svg>', page, re.DOTALL)
    ticks = [re.findall(r">(\d)</text>", svg) for svg in (first, second)]
    assert {"0", "2", "4", "6", "8"} <= set(ticks[0]) & set(ticks[1])


def test_of_many_runs_merges_are_folded_away():
    assert "<summary>What was tried and made</summary>" in report_page(MANY)
    assert "<summary>What was tried and made</summary>" not in report_page([PLAIN, MERGED])


def test_other_metrics_are_said_not_to_compare():
    other = dataclasses.replace(PLAIN, name="b", record=record())
    other.record.score_name = "val/loss"
    assert "cannot be compared" in report_page([PLAIN, other])
    assert "cannot be compared" not in report_page([PLAIN, MERGED])


def test_the_environment_says_of_what_it_is():
    assert "beside its settings" in report_page([MERGED])
    assert "need not be with what a run was trained" in report_page([PLAIN])


def test_a_record_without_curves_or_with_no_number_makes_a_page():
    Outline(report_page([Run("old", record(measurements=[], boundaries=[], before=None))]))
    nothing = record(matrix=[[math.nan, math.nan]], before=None, measurements=[])
    assert "What was learned is not known" in report_page([Run("none", nothing)])


def test_where_boundaries_were_looked_for_the_page_says_what_was_found():
    found = [{"visit": 0, "step": 12, "began": 9, "signal": "loss"}]
    page = report_page([Run("mine", record(found_boundaries=found))])
    assert "after step 9, by the loss 3 steps later" in page
    assert "boundary found" in page
    assert "<dt>Boundaries</dt>" not in report_page([PLAIN])
