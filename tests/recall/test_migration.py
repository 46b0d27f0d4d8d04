import pytest

from recall_lightning.recall.migration import migrated, of_rules, rename_states

RULES = {"a": "rules.A", "rules.A": "rules.A"}


def test_what_is_given_is_left_as_it_is():
    given = {"recall": {"old": 1}}
    migrated(given, {"recall.old": "recall.new.name"})
    assert given == {"recall": {"old": 1}}


def test_where_nothing_old_is_given_nothing_is_told():
    given = {"recall": {"every": 0.1}, "trainer": None}
    assert migrated(given, {"recall.old": "recall.new", "trainer.x": "trainer.y"}) == (given, [])


@pytest.mark.parametrize(
    ("rule", "becomes"),
    [
        ("a", {"class_path": "rules.A", "init_args": {"scale": 2}}),
        ({"class_path": "rules.A"}, {"class_path": "rules.A", "init_args": {"scale": 2}}),
        (
            {"class_path": "a", "init_args": {"x": 1}},
            {"class_path": "rules.A", "init_args": {"scale": 2, "x": 1}},
        ),
        (
            {"class_path": "rules.A", "init_args": {"scale": 3}},
            {"class_path": "rules.A", "init_args": {"scale": 3}},
        ),
        ("b", "b"),
        (None, None),
    ],
)
def test_an_argument_goes_into_the_rules_that_have_it(rule, becomes):
    given = {"recall": {"old_scale": 2, "rule": rule, "end_rule": "b"}}
    new, _ = migrated(given, {"recall.old_scale": of_rules("old_scale", "scale", RULES)})
    assert new == {"recall": {"rule": becomes, "end_rule": "b"}}


def test_what_tells_two_callbacks_of_a_class_apart_stays():
    states = {"RecallPaperLoop{'key': 1}": 1, "ForgettingMonitor": 2}
    rename_states(states)
    assert states == {"RecallPaper{'key': 1}": 1, "ForgettingMonitor": 2}
