"""Limits of what may be forgotten, and what happens where one is not kept."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from tests.support.callbacks import divergence, same, statistic, weights_of
from tests.support.optimizers import Lookahead, Masters
from tests.support.training import Plain, loader, quiet_trainer, task_data

NONE_AT_ALL = {"forgetting": 0.0}
EASY = {"forgetting": 1.0}


def stream(tasks=3):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(tasks)]
    return TaskStream.from_datasets(pairs, names=["a", "b", "c"][:tasks], batch_size=8)


def fit(*callbacks, data=None, **kwargs):
    torch.manual_seed(0)
    data, model = data or stream(), Plain(lr=0.03)
    trainer = quiet_trainer(
        *callbacks, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1, **kwargs
    )
    trainer.validate(model, data, verbose=False)
    trainer.fit(model, data)
    return model, trainer


class Weights(Callback):
    """What the weights are at each epoch's start, where an epoch is a task."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(weights_of(pl_module))


def test_what_keeps_its_limits_is_left_alone():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ForgettingMonitor: after")
        model, _ = fit(ForgettingMonitor("val/acc", limits=EASY, on_limit="rollback"))
    assert same(weights_of(model), weights_of(fit(ForgettingMonitor("val/acc"))[0]))


def test_a_limit_that_is_not_kept_is_told_with_its_figures():
    monitor = ForgettingMonitor("val/acc", limits={"continual/forgetting": 0.0})
    with pytest.warns(UserWarning, match=r"after 'b' forgetting is 0\.\d+, and its limit 0"):
        fit(monitor)
    first = monitor.exceeded[0]
    assert (first["task"], first["name"], first["limit"]) == ("b", "forgetting", 0.0)
    assert first["value"] == pytest.approx(monitor.matrix[0][0] - monitor.matrix[1][0])


def test_a_limit_may_be_of_a_task():
    monitor = ForgettingMonitor("val/acc", limits={"a": 0.0})
    fit(monitor)
    assert {each["name"] for each in monitor.exceeded} == {"a"}


def test_stop_ends_the_fit_and_refuses_the_next():
    monitor = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="stop")
    model, _ = fit(monitor)
    assert len(monitor.matrix) == 2
    assert monitor.exceeded[0]["stopped"]
    with pytest.raises(MisconfigurationException, match=r"after 'b' forgetting is .* on_limit='st"):
        quiet_trainer(monitor, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(
            model, stream()
        )


def test_a_function_is_called_with_what_was_not_kept():
    called = []

    def act(trainer, pl_module, exceeded):
        called.append((trainer.global_step, type(pl_module), str(exceeded[0])))

    monitor = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit=act)
    fit(monitor)
    assert len(called) == len(monitor.exceeded)
    assert called[0][:2] == (16, Plain)
    assert called[0][2].startswith("forgetting is")


@pytest.mark.parametrize("recall", [False, True])
def test_rollback_puts_back_the_weights_of_the_tasks_start_and_goes_on(recall):
    monitor = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback")
    weights = Weights()
    callbacks = [RecallCallback(every=1.0, plasticity=0.99)] if recall else []
    fit(monitor, *callbacks, weights)
    assert monitor.record.rolled_back == [1, 2] or monitor.record.rolled_back == [1]
    assert same(weights.seen[1], weights.seen[2])
    assert monitor.matrix[1] == monitor.matrix[0]
    assert "after b, rolled back" in monitor.record.table()


class OptimizerStates(Callback):
    """What the optimizer remembers at each epoch's start, where an epoch is a task."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


def test_rollback_puts_back_what_the_optimizer_remembered_of_the_weights():
    states = OptimizerStates()
    fit(ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback"), states)
    _, before, after = states.seen
    assert before.keys() == after.keys()
    assert before
    for number, own in before.items():
        assert own["step"] == after[number]["step"] == 8
        assert torch.equal(own["exp_avg"], after[number]["exp_avg"])
        assert torch.equal(own["exp_avg_sq"], after[number]["exp_avg_sq"])


@pytest.mark.parametrize(
    ("build", "refused"),
    [(lambda p: Lookahead(torch.optim.SGD(p, 0.03)), True), (lambda p: Masters(p, 0.03), False)],
    ids=["not in its state", "in its state"],
)
def test_an_optimizer_whose_own_weights_would_undo_a_rollback_is_refused(build, refused):
    class Own(Plain):
        def configure_optimizers(self):
            return build(self.parameters())

    def fitted(on_limit):
        monitor = ForgettingMonitor("val/acc", limits={"a": 0.0}, on_limit=on_limit)
        monitor.record.lost = lambda: {"a": 1.0}
        model, data, drift = Own(), stream(), Drift()
        quiet_trainer(
            monitor, drift, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1
        ).fit(model, data)
        return drift.seen

    if refused:
        with pytest.raises(MisconfigurationException, match=r"on_limit='rollback'\) writes.*keeps"):
            fitted("rollback")
        assert len(fitted("warn")) == 24
        return
    whole_task = fitted("warn")[7]
    assert all(first < whole_task / 2 for first in fitted("rollback")[::8])


class Drift(Callback):
    """How far the weights are from where they began, after each step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.start = weights_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = weights_of(pl_module)
        self.seen.append(sum(float((now[n] - w).square().sum()) for n, w in self.start.items()))


def within_estimate(limit, on_limit="rollback", **arguments):
    """Fit with a limit of the estimate; return the monitor, the callback, model and Trainer."""
    monitor = ForgettingMonitor(
        "val/acc", limits={"estimated_forgetting": limit}, on_limit=on_limit
    )
    recall = RecallCallback(every=1.0, plasticity=0.99, **arguments)
    return monitor, recall, *fit(recall, monitor)


@pytest.fixture(scope="module")
def estimates():
    """What the merges of a run without limits have left forgotten, as estimated."""
    recall = RecallCallback(every=1.0, plasticity=0.99)
    fit(recall)
    return [record["divergence"]["merged"] for record in recall.history]


def test_rollback_goes_back_to_a_merge_that_keeps_the_estimates_limit(estimates):
    limit = min(estimates) / 2
    with pytest.warns(UserWarning, match=r"of the merges that were tried, that which leaves \d+ %"):
        monitor, recall, model, trainer = within_estimate(limit, keep_live=True)
    assert monitor.record.rolled_back == []
    assert {each["name"] for each in monitor.exceeded} == {"estimated_forgetting"}
    assert all(each["value"] > limit for each in monitor.exceeded)
    assert all(record["divergence"]["merged"] <= limit for record in recall.history)
    mended = [record for record in recall.history if record.get("retuned")]
    assert mended
    assert all(0 < record["plasticity"] < 0.99 for record in mended)
    trainer.validate(model, stream(), verbose=False)  # the row is of these weights
    scores = [trainer.callback_metrics[f"val/acc/dataloader_idx_{n}"] for n in range(3)]
    assert monitor.matrix[-1] == pytest.approx([float(score) for score in scores])


@pytest.mark.parametrize("arguments", [{"keep_live": False}, {"keep_live": True}])
def test_without_such_a_merge_it_goes_back_to_the_tasks_start(arguments, estimates):
    limit = min(estimates) / 2 if not arguments["keep_live"] else 0.0
    monitor, *_ = within_estimate(limit, **arguments)
    assert monitor.record.rolled_back == [0, 1, 2]


def test_a_limit_that_only_warns_changes_no_merge(estimates):
    _, recall, *_ = within_estimate(min(estimates) / 2, "warn", keep_live=True)
    assert [r["divergence"]["merged"] for r in recall.history] == estimates


def test_recall_forgets_what_it_measured_of_a_task_that_is_rolled_back():
    monitor = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback")
    recall = RecallCallback(every=1.0, plasticity=0.99, merge_first_task=False)
    fit(monitor, recall, data=stream(2))
    assert monitor.record.rolled_back == [1]
    alone = RecallCallback(every=1.0, plasticity=0.99, merge_first_task=False)
    fit(alone, data=stream(1))
    known, of_one = (statistic(each, "moments").known for each in (recall, alone))
    assert known.tasks == of_one.tasks == 1
    for name, moments in of_one.inputs.items():
        assert torch.equal(moments.matrix, known.inputs[name].matrix)
    assert [record["rolled_back"] for record in recall.history] == [True]


def test_of_a_task_that_was_rolled_back_nothing_is_estimated_any_more():
    monitor = ForgettingMonitor(
        "val/acc", limits={"quadratic_forgetting": 0.0}, on_limit="rollback"
    )
    recall = RecallCallback(merge_first_task=False)
    fit(monitor, recall, data=stream(2))
    assert monitor.record.rolled_back == [1]
    assert recall.estimates == {}


def test_a_first_task_may_be_rolled_back_to_the_model_before_it():
    limits = {"estimated_forgetting": 0.0}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    weights = Weights()
    fit(monitor, RecallCallback(), weights)
    assert same(weights.seen[0], weights.seen[1])
    assert monitor.matrix[0] == monitor.record.before


@pytest.mark.parametrize("limited", ["forgetting", "a", "estimated_forgetting"])
@pytest.mark.parametrize("on_limit", ["warn", "stop", "rollback"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(on_limit, limited, tmp_path):
    def callbacks():
        monitor = ForgettingMonitor("val/acc", limits={limited: 0.0}, on_limit=on_limit)
        return monitor, RecallCallback(every=1.0, plasticity=0.99, merge_first_task=False)

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 14:  # in the second task, which will be too much
                raise Killed

    monitor, recall = callbacks()
    whole, _ = fit(monitor, recall)
    assert monitor.exceeded
    save = ModelCheckpoint(tmp_path, every_n_train_steps=12, save_top_k=-1)
    with pytest.raises(Killed):
        fit(*callbacks(), save, Kill(), enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    again, other = callbacks()
    model, data = Plain(lr=0.03), stream()
    trainer = quiet_trainer(
        again, other, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(model, data, ckpt_path=path)
    assert same(weights_of(whole), weights_of(model))
    assert again.exceeded == monitor.exceeded
    assert again.record.rolled_back == monitor.record.rolled_back
    assert again.matrix == monitor.matrix


def test_rollback_is_refused_beside_what_cannot_go_back():
    monitor = ForgettingMonitor("val/acc", limits=EASY, on_limit="rollback")
    with pytest.raises(MisconfigurationException, match="beside ElasticWeightConsolidation"):
        fit(monitor, ElasticWeightConsolidation())


def test_weights_and_biases_gets_an_alert(monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr(
        "wandb.sdk.wandb_run.Run.alert", lambda self, title, text, level: sent.append((title, text))
    )
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    fit(ForgettingMonitor("val/acc", limits=NONE_AT_ALL), logger=logger)
    logger.experiment.finish()
    assert sent[0][0] == "more forgotten than allowed"
    assert sent[0][1].startswith("after 'b' forgetting is")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"limits": {"forgetting": -0.1}}, "must be a number from 0 on"),
        ({"limits": {"forgetting": "0.1"}}, "must be a number from 0 on"),
        ({"limits": EASY, "on_limit": "halt"}, "on_limit='halt' is unknown"),
        ({"limits": {"forgetting": 0.1, "continual/forgetting": 0.2}}, "names one thing twice"),
    ],
)
def test_what_is_no_limit_is_refused(kwargs, message):
    with pytest.raises(MisconfigurationException, match=message):
        ForgettingMonitor("val/acc", **kwargs)


def test_a_limit_of_what_nobody_measures_is_refused_before_training():
    monitor = ForgettingMonitor("val/acc", limits={"continual/d": 0.1})
    with pytest.raises(MisconfigurationException, match="limits has 'd', and there are forgetting"):
        fit(monitor)
    assert monitor.matrix == []


def ruined_at(step, value):
    class Ruins(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == step:
                torch.nn.init.constant_(pl_module.net[0].weight, value)

    return Ruins()


@pytest.mark.parametrize("value", [torch.nan, 1e30])
@pytest.mark.parametrize("every", [1.0, 0.5])
def test_weights_that_no_merge_takes_keep_no_limit_of_the_estimate(every, value):
    limits = {"estimated_forgetting": 10.0}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    recall, weights = RecallCallback(every=every, merge_first_task=False), Weights()
    fit(monitor, recall, ruined_at(15, value), weights)
    assert monitor.record.rolled_back == [1]
    assert same(weights.seen[1], weights.seen[2])


@pytest.mark.parametrize("every", [3, 5])
def test_without_a_merge_at_the_end_the_limit_is_of_the_weights_that_there_are(every):
    arguments = {"plasticity": None, "end_rule": "never", "merge_first_task": False}
    recall, found = RecallCallback(every=every, **arguments), []

    class Looks(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.batches = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, *_):
            self.batches.append(batch)
            if trainer.is_last_batch and recall._merges_this_task:
                found.append(divergence(recall.snapshots[-1], pl_module, self.batches[-4:]))

    told = []

    class Listens(Callback):
        def on_validation_start(self, trainer, pl_module):
            told.extend(v for n, v in recall.estimates.items() if n == "estimated_forgetting")

    fit(Looks(), ForgettingMonitor("val/acc"), recall, Listens())
    assert len(found) == 2
    assert told == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("on_limit", ["warn", "stop", "rollback"])
def test_without_any_validation_a_limit_of_the_estimate_is_held(on_limit):
    limits = {"estimated_forgetting": 0.0, "forgetting": 0.1}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit=on_limit)
    model, recall = Plain(lr=0.03), RecallCallback(merge_first_task=False)
    with pytest.warns(UserWarning, match="nobody looks at the limits of forgetting"):
        quiet_trainer(monitor, recall).fit(model, loader(0))
    start = weights_of(model)
    quiet_trainer(monitor, recall).fit(model, loader(1))
    (one,) = monitor.exceeded
    assert (one["task"], one["name"]) == ("task 1", "estimated_forgetting")
    assert same(weights_of(model), start) == (on_limit == "rollback")
    if on_limit == "stop":
        with pytest.raises(MisconfigurationException, match="on_limit='stop'"):
            quiet_trainer(monitor, recall).fit(model, loader(2))


@pytest.mark.parametrize("average", [StochasticWeightAveraging(1e-2), EMAWeightAveraging()])
def test_rollback_is_refused_beside_an_average_that_would_undo_it(average):
    monitor = ForgettingMonitor("val/acc", limits=EASY, on_limit="rollback")
    with pytest.raises(MisconfigurationException, match="puts an average of its own in their"):
        fit(monitor, average)


@pytest.mark.parametrize("least", [{"min_epochs": 3}, {"min_steps": 24}])
def test_stop_is_refused_where_a_trainer_would_not(least):
    monitor = ForgettingMonitor("val/acc", limits=EASY, on_limit="stop")
    with pytest.raises(MisconfigurationException, match="cannot stop a Trainer with min_"):
        fit(monitor, **least)


def test_the_snapshot_of_a_task_that_is_rolled_back_counts_no_second_time():
    monitor = ForgettingMonitor("val/acc", limits={"b": 0.0, "a": 0.0}, on_limit="rollback")
    recall = RecallCallback(rule="rbf", snapshots="all", merge_first_task=False)
    fit(monitor, recall)
    assert monitor.record.rolled_back
    assert set(recall._kept.visits) == {1, 2}.difference(monitor.record.rolled_back)


def test_where_a_score_is_no_number_any_more_all_is_lost():
    class Loss(Plain):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("val/loss", loss, batch_size=len(batch[1]))

    limits = {"forgetting": 1.0, "a": 1.0}
    monitor, data = ForgettingMonitor("val/loss", limits=limits, on_limit="stop"), stream()
    quiet_trainer(
        monitor,
        ruined_at(16, torch.nan),
        max_epochs=data.total_epochs,
        reload_dataloaders_every_n_epochs=1,
    ).fit(Loss(), data)
    assert {each["name"]: each["value"] for each in monitor.exceeded} == {
        "forgetting": torch.inf,
        "a": torch.inf,
    }
    assert len(monitor.matrix) == 2


def test_a_row_that_no_validation_at_its_tasks_end_filled_is_looked_at_too():
    monitor, model = ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback"), Plain()
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    quiet_trainer(monitor).fit(model, loader(0), validation)
    stops = EarlyStopping("val/acc/dataloader_idx_1", mode="max", patience=0)
    with pytest.warns(UserWarning, match=r"cannot be rolled back any more"):
        quiet_trainer(monitor, stops, max_epochs=50).fit(model, loader(1), validation)
    assert monitor.exceeded[0]["task"] == "task 1"


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"estimated_forgetting": 0.1}, "nothing estimates it"), ({"d": 0.1}, "limits has 'd'")],
)
def test_what_nobody_measures_is_refused_before_a_step(limits, message):
    model, data = Plain(), stream()
    trainer = quiet_trainer(
        ForgettingMonitor("val/acc", limits=limits),
        max_epochs=data.total_epochs,
        reload_dataloaders_every_n_epochs=1,
    )
    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(model, data)
    assert trainer.global_step == 0


def test_a_task_whose_start_is_not_known_is_not_gone_on_with_under_rollback(tmp_path):
    save = ModelCheckpoint(tmp_path, every_n_train_steps=12, save_top_k=-1)
    fit(ForgettingMonitor("val/acc", limits=NONE_AT_ALL), save, enable_checkpointing=True)
    path, data = tmp_path / "epoch=1-step=12.ckpt", stream()
    trainer = quiet_trainer(
        ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit="rollback"),
        max_epochs=data.total_epochs,
        reload_dataloaders_every_n_epochs=1,
    )
    with pytest.raises(MisconfigurationException, match="holds no weights of its start"):
        trainer.fit(Plain(), data, ckpt_path=path)


def test_after_a_first_task_that_is_rolled_back_the_next_is_the_first():
    limits = {"a": 0.0}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    monitor.record.lost = lambda: {"a": 1.0} if len(monitor.matrix) == 1 else {}
    recall = RecallCallback(every=1.0, merge_first_task=False)
    fit(monitor, recall)
    assert monitor.record.rolled_back == [0]
    assert [record["task"] for record in recall.history] == [2]


def test_what_a_function_raises_comes_through():
    class Gate(ValueError):
        pass

    def act(trainer, pl_module, exceeded):
        raise Gate

    with pytest.raises(Gate):
        fit(ForgettingMonitor("val/acc", limits=NONE_AT_ALL, on_limit=act))


def test_nothing_is_kept_longer_than_until_the_verdict():
    monitor = ForgettingMonitor("val/acc", limits=EASY, on_limit="rollback")
    fit(monitor)
    assert monitor.state_dict()["start"] is None
    assert monitor.state_dict()["start_optimizers"] is None
    alone = RecallCallback()
    fit(alone)
    assert alone._sums is None


class Ends(Callback):
    """Ends a fit after its second epoch, behind the last validation."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("on_limit", ["warn", "stop", "rollback"])
def test_an_estimate_that_comes_behind_the_last_validation_is_looked_at(on_limit, validates):
    monitor = ForgettingMonitor("val/acc", limits={"estimated_forgetting": 0.0}, on_limit=on_limit)
    model, recall = Plain(lr=0.03), RecallCallback(merge_first_task=False)
    held_out = [loader(each, shuffle=False) for each in range(3)] if validates else None
    for task in range(2):
        trainer = quiet_trainer(monitor, recall, Ends(), max_epochs=9)
        trainer.fit(model, loader(task), held_out)
    (one,) = monitor.exceeded
    assert (one["visit"], one["name"]) == (1, "estimated_forgetting")
    assert one["value"] == recall.estimates["estimated_forgetting"]
    assert one.get("stopped", False) == (on_limit == "stop")
    if on_limit == "stop":
        with pytest.raises(MisconfigurationException, match="on_limit='stop'"):
            quiet_trainer(monitor, recall).fit(model, loader(2), held_out)


def test_a_limit_of_what_nothing_can_estimate_is_said_not_to_be_looked_at():
    class StudentT(Plain):
        def training_step(self, batch, batch_idx):
            return -distribution(self.net(batch[0])).log_prob(batch[1].float()).mean()

    def distribution(outputs):
        return torch.distributions.StudentT(3.0, outputs[..., 0], outputs[..., 1].exp())

    monitor = ForgettingMonitor("val/acc", limits={"estimated_forgetting": 0.0})
    model, recall = StudentT(), RecallCallback(merge_first_task=False, predictions=distribution)
    quiet_trainer(monitor, recall).fit(model, loader(0))
    with pytest.warns(UserWarning, match="was not looked at after 'task 1'.*register_kl"):
        quiet_trainer(monitor, recall).fit(model, loader(1))
    assert monitor.exceeded == []


def test_a_row_that_is_rolled_back_may_have_more_scores_than_the_one_before():
    monitor = ForgettingMonitor(
        "val/acc", limits={"estimated_forgetting": 0.0}, on_limit="rollback"
    )
    model, recall = Plain(lr=0.03), RecallCallback(merge_first_task=False)
    for task in range(2):
        held_out = [loader(each, shuffle=False) for each in range(task + 1)]
        quiet_trainer(monitor, recall).fit(model, loader(task), held_out)
    assert monitor.record.rolled_back == [1]
    assert monitor.matrix[1] == pytest.approx([monitor.matrix[0][0], torch.nan], nan_ok=True)


def test_a_limit_that_another_merge_keeps_stops_no_later_fit(estimates):
    monitor, *_ = within_estimate(min(estimates) / 2, keep_live=True)
    assert all(each["mended"] for each in monitor.exceeded)
    stopping = ForgettingMonitor("val/acc", limits=EASY, on_limit="stop")
    stopping.load_state_dict(monitor.state_dict())
    stopping._limits.check_goes_on(in_midst=False)


def quadratic(callback):
    return [record["quadratic_forgetting"]["merged"] for record in callback.history]


def test_a_limit_may_be_of_what_the_curvature_estimates():
    free = RecallCallback(every=1.0, plasticity=0.99)
    fit(free)
    limit = quadratic(free)[-1] / 2
    limits = {"quadratic_forgetting": limit, "estimated_forgetting": 1e9}
    monitor = ForgettingMonitor("val/acc", limits=limits, on_limit="rollback")
    recall = RecallCallback(every=1.0, plasticity=0.99, keep_live=True)
    with pytest.warns(
        UserWarning, match="takes the place .* with estimated_forgetting of .* and qu"
    ):
        fit(monitor, recall)
    assert monitor.record.rolled_back == []
    assert {each["name"] for each in monitor.exceeded} == {"quadratic_forgetting"}
    assert max(quadratic(recall)) <= limit
    assert any(record.get("retuned") for record in recall.history)


def test_without_another_merge_a_limit_of_the_curvatures_estimate_undoes_the_task():
    monitor = ForgettingMonitor(
        "val/acc", limits={"quadratic_forgetting": 0.0}, on_limit="rollback"
    )
    fit(monitor, RecallCallback(merge_first_task=False))
    assert monitor.record.rolled_back == [1, 2]
