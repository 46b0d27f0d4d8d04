import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Subspace, Uniform
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.needed import NeededStatistics
from tests.support.callbacks import Fixed, statistic
from tests.support.training import Plain, loader, quiet_trainer


class Recorded(Statistic):
    """Writes down by which hooks it is reached."""

    def __init__(self, name, meets, heard, ready=True):
        self.name, self.meets = name, frozenset(meets)
        self.heard, self.ready = heard, ready

    def notes(self, structure, module):
        return {"weight": self.name}

    def prepare_merge(self, context, rule, last):
        self.heard.append((self.name, "prepare_merge"))
        return self.ready

    def give(self, context, rule):
        self.heard.append((self.name, "give"))
        return [{self.name: position} for position, _ in enumerate(context.snapshots)]

    def state_dict(self):
        return {"of": self.name}

    def load_state_dict(self, state_dict):
        self.heard.append((self.name, state_dict["of"]))


EVENTS = ("start_task", "observe_batch", "observe_gradients", "observe_step", "end_task", "resume")
EVENTS += ("leave_snapshots",)
for event in EVENTS:
    setattr(Recorded, event, lambda self, *_, event=event: self.heard.append((self.name, event)))


class Needs(Fixed):
    def __init__(self, *needs):
        super().__init__({})
        self.needs = frozenset(needs)


def context(snapshots=2):
    return TaskContext(None, None, None, Structure(), [{}] * snapshots)


def collected(*rules, others=(), ready=True):
    """Three statistics, of which the rules need some, and what they hear."""
    heard = []
    available = [
        Recorded("beside", [], heard),
        Recorded("one", ["a", "b"], heard, ready),
        Recorded("two", ["c"], heard),
    ]
    return NeededStatistics(available, rules, others), heard


@pytest.mark.parametrize(
    ("arguments", "active"),
    [
        ({"rule": Uniform(0.1)}, []),
        ({"rule": Uniform(0.1), "buffers": "recalibrate"}, ["recent_batches"]),
        ({"rule": "rbf"}, ["samples"]),
        ({"rule": "importance"}, ["importance"]),
        ({"rule": "importance", "end_rule": Uniform(0.1)}, ["importance"]),
        ({"rule": "subspace"}, ["recent_batches", "moments"]),
        ({}, ["recent_batches", "importance", "moments", "head_inputs"]),
        ({"refit_head": False}, ["recent_batches", "importance", "moments"]),
        ({"rule": "rbf*importance", "end_rule": "never"}, ["samples", "importance"]),
    ],
    ids=str,
)
def test_what_no_rule_needs_is_not_active(arguments, active):
    callback = RecallCallback(**arguments)
    active = [*active, "step_sizes"]  # which every merge within a task asks for
    assert [each.name for each in callback._statistics.active] == active
    assert list(callback.state_dict()["statistics"]) == active


@pytest.mark.parametrize(("rule", "curvature"), [("subspace", False), ("kfac_subspace", True)])
def test_a_plain_subspace_rule_does_not_pay_for_curvature(rule, curvature):
    callback = RecallCallback(every=1.0, rule=rule, moments=MomentSettings(batches=1))
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert bool(statistic(callback, "moments").known.outputs) == curvature


@pytest.mark.parametrize("event", EVENTS)
def test_hooks_reach_the_active_ones_in_their_order(event):
    statistics, heard = collected(Needs("c"), Needs("a"))
    arguments = {"observe_batch": 2, "observe_gradients": 2}.get(event, 1)
    getattr(statistics, event)(*[None] * arguments)
    assert heard == [("one", event), ("two", event)]


def test_a_statistic_that_something_else_needs_is_active_too():
    statistics, _ = collected(Needs("c"), others=["beside"])
    assert [each.name for each in statistics.active] == ["beside", "two"]


def test_a_merge_asks_only_what_its_own_rule_needs():
    rule, other = Needs("a"), Needs("c")
    statistics, heard = collected(rule, other, others=["beside"])
    assert statistics.prepare_merge(context(), rule, last=False)
    assert statistics.give(context(), rule) == [{"one": 0}, {"one": 1}]
    assert heard == [("one", "prepare_merge"), ("one", "give")]


def test_what_several_statistics_give_is_put_together_for_each_snapshot():
    rule = Needs("a", "b", "c")
    statistics, _ = collected(rule)
    assert statistics.give(context(), rule) == [{"one": 0, "two": 0}, {"one": 1, "two": 1}]


def test_a_rule_that_needs_nothing_is_given_as_many_empty_fields_as_there_are_snapshots():
    statistics, heard = collected(Needs())
    assert statistics.prepare_merge(context(), Needs(), last=False)
    assert statistics.give(context(3), Needs()) == [{}, {}, {}]
    assert heard == []


def test_there_is_no_merge_before_all_that_the_rule_needs_is_there():
    statistics, _ = collected(Needs("a"), Needs("c"), ready=False)
    assert not statistics.prepare_merge(context(), Needs("a", "c"), last=False)
    assert statistics.prepare_merge(context(), Needs("c"), last=False)


def test_a_rule_that_needs_what_nothing_measures_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="Needs needs 'd', which nothing measures: use a, b, c"):
        collected(Needs("a", "d"))


def test_states_are_kept_by_name_and_come_back():
    statistics, heard = collected(Needs("a"), Needs("c"))
    assert statistics.state_dict() == {"one": {"of": "one"}, "two": {"of": "two"}}
    statistics.load_state_dict(statistics.state_dict() | {"gone": {}})
    assert heard == [("one", "one"), ("two", "two")]


def test_a_checkpoint_without_a_statistics_state_says_that_nothing_is_known():
    statistics, heard = collected(Needs("a"), Needs("c"))
    with pytest.warns(UserWarning, match="the checkpoint holds no one, which the rules need now"):
        statistics.load_state_dict({"two": {"of": "two"}})
    assert heard == [("two", "two")]


def test_a_run_that_resumes_with_a_rule_that_needs_more_starts_empty_in_the_first_task():
    before = RecallCallback(rule="importance")
    now = RecallCallback(rule="importance", end_rule=Subspace())
    with pytest.warns(UserWarning, match="holds no moments"):
        now.load_state_dict(before.state_dict())


def test_a_rule_that_needs_what_is_not_known_of_ended_tasks_is_refused():
    before = RecallCallback(rule="importance").state_dict() | {"visits": [0], "task_ended": True}
    now = RecallCallback(rule="importance", end_rule=Subspace())
    with pytest.raises(MisconfigurationException, match=r"holds no moments.*1 task.*\(imp"):
        now.load_state_dict(before)


def test_what_weights_are_merged_by_otherwise_is_said_by_the_active_ones():
    statistics, _ = collected(Needs("c"))
    assert statistics.notes(Structure(), None) == {"weight": "two"}
