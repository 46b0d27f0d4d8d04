import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics import MetricTracker

from recall_lightning import metrics as m

NAN = math.nan
ONE = [[0.9362000227, 0.6093000174, 0.3325999975],
       [0.8284000158, 0.9506999850, 0.3382999897],
       [0.4377000034, 0.4826000035, 0.9438999891]]  # fmt: skip
TWO = [[1, 0, 0], [0.5, 0.8, 1], [0.2, 1, 0.5]]
THREE = [[0.9, 0.95, 0.1], [0.7, 0.8, 0.2], [0.6, 0.7, 0.9]]
BASE = [0.2, 0.1, 0.09]
JOINT = [0.95, 0.96, 0.97]

FUNCTIONS = {
    "average": m.average,
    "backward_transfer": m.backward_transfer,
    "forward_transfer": lambda matrix, **kw: m.forward_transfer(matrix, BASE, **kw),
    "forgetting": m.forgetting,
    "any_time": lambda matrix, **kw: m.forgetting(matrix, "any_time", **kw),
    "plasticity": m.plasticity,
    "intransigence": lambda matrix, **kw: m.intransigence(matrix, JOINT, **kw),
}
CLASSES = {
    "average": m.Average,
    "backward_transfer": m.BackwardTransfer,
    "forward_transfer": lambda n, **kw: m.ForwardTransfer(n, BASE, **kw),
    "forgetting": m.Forgetting,
    "any_time": lambda n, **kw: m.Forgetting(n, "any_time", **kw),
    "plasticity": m.Plasticity,
    "intransigence": lambda n, **kw: m.Intransigence(n, JOINT, **kw),
}
each_metric = pytest.mark.parametrize("name", FUNCTIONS)
each_direction = pytest.mark.parametrize("higher", [True, False])
squares = st.integers(1, 6).flatmap(
    lambda n: arrays("float64", (n, n), elements=st.floats(-100, 100))
)


def same(value, expected):
    return torch.equal(value, expected) or bool(value.isnan() and expected.isnan())


def synchronise(metric, gather):
    metric.sync(dist_sync_fn=lambda rows, group: gather(rows), distributed_available=lambda: True)


def negated(matrix):
    return -torch.as_tensor(matrix)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (m.average(ONE), 0.6214),
        (m.average(ONE, after=0), 0.9362),
        (m.average(ONE, after=1), 0.88955),
        (m.backward_transfer(ONE), -0.4833),
        (m.forward_transfer(ONE, BASE), 0.3788),
        (m.forgetting(ONE), 0.4833),
        (m.plasticity(ONE), 0.9436),
        (m.intransigence(ONE, JOINT), 0.0164),
        (m.backward_transfer(TWO), -0.3),
        (m.forgetting(TWO), 0.3),
        (m.forgetting(THREE), 0.2),
        (m.forgetting(THREE, "any_time"), 0.275),
        (m.forgetting(THREE, "first_minus_last"), 0.2),
        (m.backward_transfer(THREE), -0.2),
    ],
)
def test_hand_worked_values(value, expected):
    assert value.item() == pytest.approx(expected, abs=5e-5)
    assert (value.dtype, value.shape) == (torch.float64, ())


def test_gap_closed_is_the_share_of_the_gap_in_percent():
    assert m.gap_closed(0.6, finetune=0.5, joint=0.9) == pytest.approx(25)
    assert m.gap_closed(-0.6, finetune=-0.5, joint=-0.9) == pytest.approx(25)
    assert m.gap_closed(0.4, finetune=0.5, joint=0.9) == pytest.approx(-25)


@given(squares)
def test_turning_scores_and_direction_leaves_transfer_and_forgetting(matrix):
    zeros = torch.zeros(len(matrix))
    for function, arguments in [
        (m.backward_transfer, ()),
        (m.forward_transfer, (zeros,)),
        (m.intransigence, (zeros,)),
        *((m.forgetting, (v,)) for v in ("since_trained", "any_time", "first_minus_last")),
    ]:
        turned = function(negated(matrix), *arguments, higher_is_better=False)
        assert same(function(matrix, *arguments), turned)


@given(squares)
def test_turning_scores_turns_average_and_plasticity(matrix):
    assert same(m.average(negated(matrix), higher_is_better=False), -m.average(matrix))
    assert same(m.plasticity(negated(matrix), higher_is_better=False), -m.plasticity(matrix))


@given(squares)
def test_variants_of_forgetting_are_ordered(matrix):
    any_time, since, first = (
        m.forgetting(matrix, v) for v in ("any_time", "since_trained", "first_minus_last")
    )
    assert len(matrix) == 1 or any_time >= since >= first
    assert same(first, -m.backward_transfer(matrix))


@given(st.integers(2, 6), st.floats(-100, 100), st.booleans())
def test_a_constant_matrix_shows_no_forgetting_and_no_transfer(n, score, higher):
    matrix = torch.full((n, n), score, dtype=torch.float64)
    assert str(m.forgetting(matrix, higher_is_better=higher).item()) == "0.0"
    assert str(m.backward_transfer(matrix, higher_is_better=higher).item()) == "0.0"
    assert str(m.forward_transfer(matrix, matrix[0], higher_is_better=higher).item()) == "0.0"


def test_forgetting_does_not_count_the_last_row_as_a_best():
    assert m.forgetting([[0.5, 0.0], [0.7, 0.0]]).item() == pytest.approx(-0.2)


@each_metric
def test_fewer_rows_than_tasks_are_metrics_over_the_first_tasks(name):
    reference = {"forward_transfer": BASE[:2], "intransigence": JOINT[:2]}.get(name)
    function = getattr(m, "forgetting" if name == "any_time" else name)
    variant = ["any_time"] if name == "any_time" else []
    square = [row[:2] for row in ONE[:2]]
    expected = function(square, *([reference] if reference else variant))
    assert torch.equal(FUNCTIONS[name](ONE[:2]), expected)


@each_metric
def test_a_single_task_has_no_pairs_to_compare(name):
    alone = FUNCTIONS[name](ONE[:1])
    assert alone.isnan() == (name not in ("average", "plasticity", "intransigence"))


@each_metric
def test_nan_matters_exactly_where_the_formula_reads(name):
    above = [[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.6, 0.7, 0.9]]
    if name in ("forward_transfer", "any_time"):
        with pytest.raises(ValueError, match=r"`matrix\[0, 1\]` is NaN.*task 1 after.*task 0"):
            FUNCTIONS[name](above)
    else:
        assert torch.equal(FUNCTIONS[name](above), FUNCTIONS[name](THREE))
    with pytest.raises(ValueError, match="is NaN"):
        FUNCTIONS[name](torch.full((3, 3), NAN))


def test_references_are_read_for_the_tasks_of_the_formula_only():
    assert not m.forward_transfer(ONE, [NAN, 0.1, 0.09]).isnan()
    assert not m.intransigence(ONE[:2], [0.9, 0.9, NAN]).isnan()
    with pytest.raises(ValueError, match=r"`baseline\[2\]` is NaN"):
        m.forward_transfer(ONE, [0.2, 0.1, NAN])
    with pytest.raises(ValueError, match=r"`joint\[0\]` is NaN"):
        m.intransigence(ONE, [NAN, 0.9, 0.9])


@each_metric
@pytest.mark.parametrize("shape", [(3,), (0, 3), (4, 3), (2, 2, 2)])
def test_a_matrix_of_wrong_shape_raises(name, shape):
    with pytest.raises(ValueError, match=r"`matrix` has shape \(.*one row for each task"):
        FUNCTIONS[name](torch.zeros(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.average(ONE, after=3), "`after` is 3.*rows 0 to 2"),
        (lambda: m.average(ONE, after=-1), "`after` is -1"),
        (lambda: m.forgetting(ONE, "sometimes"), "'sometimes'.*'since_trained', 'any_time'"),
        (lambda: m.Forgetting(3, "sometimes"), "'sometimes'"),
        (lambda: m.forward_transfer(ONE, [0.1]), r"`baseline` has shape \(1,\).*3 tasks"),
        (lambda: m.ForwardTransfer(3, [0.1]), r"`baseline` has shape \(1,\)"),
        (lambda: m.intransigence(ONE, [[0.1] * 3]), r"`joint` has shape \(1, 3\)"),
        (lambda: m.Intransigence(3, [0.1]), r"`joint` has shape \(1,\)"),
        (lambda: m.gap_closed(0.5, 0.7, 0.7), "no gap"),
        (lambda: m.gap_closed(NAN, 0.7, 0.8), "`method` is nan"),
        (lambda: m.gap_closed(0.7, math.inf, 0.8), "`finetune` is inf"),
        (lambda: m.Average(0), "`num_tasks` is 0"),
        (lambda: m.Average(3).update(3, ONE[0]), "`task` is 3.*0 to 2"),
        (lambda: m.Average(3).update(-1, ONE[0]), "`task` is -1"),
        (lambda: m.Average(3).update(1, [0.5]), r"`scores` of task 1 has shape \(1,\)"),
        (lambda: m.Average(3)(1, ONE[1]), r"tasks \[1\] are set.*`update`"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_computing_before_any_row_raises():
    with pytest.raises(ValueError, match=r"tasks \[\] are set"):
        m.Average(3).compute()


@each_metric
@each_direction
def test_metric_equals_function_after_every_task(name, higher):
    metric = CLASSES[name](3, higher_is_better=higher).set_dtype(torch.float64)
    for task, scores in enumerate(ONE):
        expected = FUNCTIONS[name](ONE[: task + 1], higher_is_better=higher)
        assert same(metric(task, scores), expected)
        assert same(metric.compute(), expected)


def test_metric_values_have_the_dtype_of_metrics():
    assert m.Average(3)(0, ONE[0]).dtype == torch.float32


def test_updating_a_task_again_replaces_its_row():
    metric = m.Average(3)
    metric.update(0, [0.9, 0.0, 0.0])
    assert metric(0, [0.5, 0.0, 0.0]) == 0.5


def test_update_order_does_not_matter():
    metric = m.Forgetting(3)
    for task in (2, 0, 1):
        metric.update(task, THREE[task])
    assert metric.compute().item() == pytest.approx(0.2)


def test_reset_forgets_every_row():
    metric = m.Average(3)
    metric.update(0, ONE[0])
    metric.reset()
    assert metric.rows.isnan().all()
    assert metric(0, [0.5, 0.0, 0.0]) == 0.5


def test_rows_survive_a_state_dict_and_a_pickle():
    metric = m.BackwardTransfer(3)
    for task, scores in enumerate(THREE):
        metric.update(task, scores)
    restored = m.BackwardTransfer(3)
    restored.load_state_dict(metric.state_dict())
    restored._update_count = 1
    assert restored.compute() == pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


def test_rows_set_under_inference_mode_can_be_set_again_outside():
    metric = m.Average(3)
    with torch.inference_mode():
        metric.reset()
        metric.update(0, ONE[0])
    metric.update(1, ONE[1])
    assert metric.compute().item() == pytest.approx(0.88955, abs=5e-5)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_synchronising_replicas_changes_nothing(processes):
    metric = m.Average(3)
    metric.update(0, [1 / 3, NAN, NAN])
    metric.update(1, [1 / 7, 1 / 9, NAN])
    before = metric.rows.nan_to_num(-1)
    synchronise(metric, lambda rows: [rows] * processes)
    assert torch.equal(metric.rows.nan_to_num(-1), before)


def test_synchronising_gives_all_processes_what_one_holds():
    metric = m.Average(2)
    metric.update(0, [0.5, NAN])
    synchronise(metric, lambda rows: [torch.full_like(rows, NAN), rows])
    assert metric.rows[0, 0] == 0.5


@each_direction
def test_direction_of_a_metrics_own_value(higher):
    better = {n: make(3, higher_is_better=higher).higher_is_better for n, make in CLASSES.items()}
    assert better == {
        "average": higher,
        "plasticity": higher,
        "backward_transfer": True,
        "forward_transfer": True,
        "forgetting": False,
        "any_time": False,
        "intransigence": False,
    }


def test_a_tracker_finds_the_lowest_average_loss():
    tracker = MetricTracker(m.Average(1, higher_is_better=False))
    for loss in (3.0, 1.0, 2.0):
        tracker.increment()
        tracker.update(0, [loss])
    assert tracker.best_metric() == 1.0
