import pytest
import torch
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from torch import nn

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.recall import training_estimates
from tests.support.callbacks import divergence, same, weights_of
from tests.support.training import Plain, loader, quiet_trainer

QUADRATIC, DIVERGENCE = "recall/quadratic_forgetting/live", "recall/divergence/live"


class Recorded(Logger):
    def __init__(self):
        super().__init__()
        self.logged = []

    name, version = "recorded", "0"

    @property
    @rank_zero_experiment
    def experiment(self):
        return None

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.append(metrics)

    def curve(self, key):
        return {each["recall/step"]: each[key] for each in self.logged if key in each}


@pytest.fixture
def often(monkeypatch):
    """Have tasks of eight steps estimated after every second one."""
    monkeypatch.setattr(training_estimates, "_APART", 2)


def trained(tasks=2, kind=Plain, others=(), **options):
    torch.manual_seed(0)
    model, callback, recorded = kind(), RecallCallback(**options), Recorded()
    for task in range(tasks):
        data = loader(task, generator=torch.Generator().manual_seed(task))
        held_out = [loader(each, shuffle=False) for each in range(tasks)] if others else None
        trainer = quiet_trainer(callback, *others, logger=recorded)
        trainer.fit(model, data, held_out)
    return model, callback, recorded


@pytest.mark.usefixtures("often")
def test_both_are_logged_between_merges():
    _, callback, recorded = trained(merge_first_task=False, every=1.0)
    (merge,) = callback.history
    for key, name in ((QUADRATIC, "quadratic_forgetting"), (DIVERGENCE, "divergence")):
        told = recorded.curve(key)
        assert list(told) == [10, 12, 14, 16]
        assert 0 < told[10] < told[14]
        assert told[16] == merge[name]["live"]


@pytest.mark.parametrize("plasticity", [0.9, None])
def test_the_estimate_is_how_far_the_merged_weights_predictions_have_gone(plasticity):
    model, callback, _ = trained(merge_first_task=False, every=1.0, plasticity=plasticity)
    last = list(loader(1, generator=torch.Generator().manual_seed(1)))[-4:]
    expected = divergence(callback.snapshots[-1], model, last)
    assert callback.estimates["estimated_forgetting"] == pytest.approx(expected, rel=1e-4)


def test_of_a_merge_that_was_made_again_the_curvature_alone_tells():
    model, callback, _ = trained(every=1.0, plasticity=0.9, keep_live=True)
    before = callback.estimates
    callback.retune(model, 0.5)
    assert callback.estimates.keys() == {"quadratic_forgetting"}
    assert callback.estimates["quadratic_forgetting"] < before["quadratic_forgetting"]


@pytest.mark.usefixtures("often")
def test_before_anything_is_known_of_earlier_tasks_there_is_the_divergence_alone():
    _, _, recorded = trained(tasks=1)
    assert list(recorded.curve(DIVERGENCE)) == [2, 4, 6, 8]  # the last is the merge's
    assert list(recorded.curve(QUADRATIC)) == [8]


@pytest.mark.usefixtures("often")
def test_they_change_neither_training_nor_merges(monkeypatch):
    class Random(Plain):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 2)))

    model, callback, _ = trained(kind=Random)
    monkeypatch.setattr(training_estimates, "_APART", 400)
    other, rare, recorded = trained(kind=Random)
    assert list(recorded.curve(QUADRATIC)) == [8, 16]
    assert same(weights_of(model), weights_of(other))
    assert [each["keep"] for each in callback.history] == [each["keep"] for each in rare.history]


@pytest.mark.usefixtures("often")
def test_a_limit_is_held_against_the_last_where_a_task_ends_without_a_merge():
    limited = ForgettingMonitor("val/acc", limits={"estimated_forgetting": 0.0})
    with pytest.warns(UserWarning, match="estimated_forgetting is .*, and its limit 0"):
        _, callback, recorded = trained(
            others=[limited], merge_first_task=False, every=100, end_rule="never", plasticity=None
        )
    assert callback.history == []
    (one,) = limited.exceeded
    assert one["value"] == recorded.curve(DIVERGENCE)[16]


@pytest.mark.usefixtures("often")
def test_weights_that_are_no_numbers_keep_no_limit():
    class Diverging(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            last = self.trainer.callbacks[0].visit == 1 and batch_idx > 3
            return loss * float("nan") if last and self.training else loss

    limited = ForgettingMonitor("val/acc", limits={"estimated_forgetting": 1e9})
    with pytest.warns(UserWarning, match="estimated_forgetting is inf"):
        trained(kind=Diverging, others=[limited], merge_first_task=False, every=1.0)
    assert len(limited.exceeded) == 1


@pytest.mark.usefixtures("often")
def test_a_checkpoint_of_a_running_task_holds_the_last():
    _, callback, recorded = trained(merge_first_task=False, every=1.0)
    held = callback.state_dict()["estimate"]
    assert held["divergence"] == {"live": recorded.curve(DIVERGENCE)[14]}
    other = RecallCallback(merge_first_task=False, every=1.0)
    other.load_state_dict(callback.state_dict())
    assert other.state_dict()["estimate"] == held


@pytest.mark.usefixtures("often")
def test_a_checkpoint_of_before_anything_is_known_of_earlier_tasks_can_be_loaded():
    _, callback, _ = trained(tasks=1)
    other = RecallCallback()
    other.load_state_dict(callback.state_dict())
    assert other.state_dict()["estimate"].keys() == {"visit", "step", "divergence"}


def test_a_short_task_has_none():
    _, _, recorded = trained()
    assert list(recorded.curve(QUADRATIC)) == [8, 16]


@pytest.mark.usefixtures("often")
def test_rules_without_curvature_have_none():
    _, _, recorded = trained(rule="rbf", every=1.0)
    assert not recorded.curve(DIVERGENCE)
