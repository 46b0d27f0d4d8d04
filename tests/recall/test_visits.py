"""Tasks that come back: A, B, A, B."""

import json

import pytest
import torch
from lightning.pytorch import LightningDataModule

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.ewc_lora import UpdateConsolidation
from recall_lightning.methods.finch import Finch
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.kfac_penalty import KfacPenalty
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.low_lr import LowLearningRate
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.methods.osf import OrthogonalSubspace
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.methods.wise_ft import WiseFT
from tests.support.callbacks import FEW, recall, same, statistic, weights_of
from tests.support.resumed_runs import resumed_from_each, stream
from tests.support.training import Plain, loader, quiet_trainer

ORDER = [0, 1, 0, 1]


class Returning(LightningDataModule):
    """A and B in turn, an epoch each; samples come in one order, as after any resume."""

    task_names = ["A", "B"]

    def task_at(self, epoch):
        return ORDER[min(epoch, 3)]

    def train_dataloader(self):
        task = self.task_at(self.trainer.current_epoch)
        return loader(task, 16, shuffle=False)

    def val_dataloader(self):
        return [loader(task, 16, shuffle=False) for task in range(2)]


def fit(*callbacks, model=None, **kwargs):
    model = model or Plain()
    trainer = quiet_trainer(*callbacks, max_epochs=4, reload_dataloaders_every_n_epochs=1, **kwargs)
    trainer.fit(model, datamodule=Returning())
    return model


def test_what_is_known_and_done_is_kept_when_a_task_comes_back():
    callback = RecallCallback(
        every=1.0, rule="importance", end_rule="subspace", merge_first_task=False
    )
    fit(callback)
    assert [(r["task"], r["visit"], r["step"]) for r in callback.history] == [
        (1, 1, 4), (0, 2, 6), (1, 3, 8)
    ]  # fmt: skip
    assert statistic(callback, "importance").tasks == 4
    assert statistic(callback, "moments").known.tasks == 4


def test_each_visit_merges_with_the_weights_that_it_started_from():
    taken = []

    class Boundaries(RecallCallback):
        def on_task_start(self, trainer, pl_module, task):
            super().on_task_start(trainer, pl_module, task)
            taken.append(same(dict(self.snapshots[-1]), weights_of(pl_module)))
            taken.append(len(self.snapshots))

    fit(Boundaries(every=2, rule="rbf", samples=FEW, snapshots="all"))
    assert taken == [True, 1, True, 2, True, 3, True, 4]


def test_a_visit_that_is_merged_with_several_snapshots_names_them():
    callback = recall(every=1.0, snapshots=3)
    fit(callback)
    assert [[old["visit"] for old in r.get("earlier", [])] for r in callback.history] == [
        [], [0], [0, 1], [1, 2]
    ]  # fmt: skip


def test_the_task_matrix_has_a_row_a_visit_and_a_column_a_task(tmp_path):
    monitor = ForgettingMonitor("val/acc", folder=str(tmp_path))
    fit(monitor)
    matrix = torch.tensor(monitor.matrix)
    assert matrix.shape == (4, 2)
    assert monitor.record.trained == ORDER
    assert list(monitor.record.rows("before")) == [
        "after A", "after B", "after A (2)", "after B (2)"
    ]  # fmt: skip
    summary = monitor.summary()
    own = [matrix[0, 0], matrix[1, 1], matrix[2, 0], matrix[3, 1]]
    assert summary["plasticity"] == pytest.approx(float(sum(own) / 4))
    assert summary["average"] == pytest.approx(float(matrix[3].mean()))
    assert summary["backward_transfer"] == pytest.approx(float(matrix[3, 0] - matrix[2, 0]))
    assert summary["forgetting"] == pytest.approx(float(matrix[:3, 0].max() - matrix[3, 0]))
    assert [name for _, name in monitor.record.boundaries] == ["A", "B", "A", "B"]
    assert json.loads((tmp_path / "task_matrix.json").read_text())["trained"] == ORDER


def test_methods_protect_a_task_that_comes_back():
    ewc, hft, adaptive = ElasticWeightConsolidation(1.0), HalfFineTuning(), AdaptiveInterval()
    drawn, known = [], []

    class Looks(Plain):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 0:
                drawn.append(hft.frozen)
                known.append(sum(float(fisher.sum()) for fisher in ewc.fisher.values()))

    fit(ewc, hft, adaptive, model=Looks())
    assert known == sorted(known)
    assert 0 == known[0] < known[1] < known[2] < known[3]
    assert drawn[0] != drawn[2]
    assert adaptive._steps == 8


METHODS = [AdaptiveInterval, ElasticWeightConsolidation, HalfFineTuning, L2ToSnapshot]
METHODS += [LowLearningRate, LearningWithoutForgetting, SequentialFinetuningAveraging, WiseFT]
METHODS += [Finch, KfacPenalty, OrthogonalSubspace, UpdateConsolidation]
CALLBACKS = {method.__name__: lambda method=method: [method()] for method in METHODS}
CALLBACKS["recall"] = lambda: [RecallCallback(every=1)]
CALLBACKS["two snapshots"] = lambda: [recall(every=1, snapshots=2)]


def returning_stream():
    return stream(epochs_per_task=1, order=ORDER, batch_size=18)  # three batches a visit


@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_every_visit_resumes_exactly(callbacks, tmp_path):
    assert resumed_from_each(tmp_path, callbacks, ["batch", "validation"], returning_stream) == {}


def test_another_fit_of_the_same_model_goes_on_from_what_is_known():
    callback, monitor, model = RecallCallback(), ForgettingMonitor("val/acc"), Plain()
    for _ in range(2):
        fit(callback, monitor, model=model)
    assert callback.clock.visits == [*ORDER, *ORDER]
    assert statistic(callback, "moments").known.tasks == 9  # and what was before
    assert len(monitor.matrix) == 8
    assert {record["visit"] for record in callback.history} == set(range(8))


def test_another_model_that_starts_with_the_first_task_is_a_new_run_which_is_said():
    callback, monitor = RecallCallback(), ForgettingMonitor("val/acc")
    fit(callback, monitor)
    with pytest.warns(UserWarning, match="been through 4 tasks with another model"):
        fit(callback, monitor)
    assert callback.clock.visits == ORDER
    assert statistic(callback, "moments").known.tasks == 5  # and what was before
    assert len(monitor.matrix) == 4


def test_fits_of_given_tasks_may_return_to_one():
    class Given(LightningDataModule):
        def __init__(self, task):
            super().__init__()
            self.task = task

        def task_at(self, epoch):
            return self.task

        def train_dataloader(self):
            return loader(self.task, 16)

        def val_dataloader(self):
            return [loader(task, 16, shuffle=False) for task in range(2)]

    callback, monitor, model = RecallCallback(), ForgettingMonitor("val/acc"), Plain()
    for task in ORDER:
        quiet_trainer(callback, monitor).fit(model, datamodule=Given(task))
    assert monitor.record.trained == callback.clock.visits == ORDER
    assert {record["visit"] for record in callback.history} == {0, 1, 2, 3}


def test_a_task_that_has_ended_and_is_trained_longer_is_visited_again():
    callback, monitor, model = (
        RecallCallback(),
        ForgettingMonitor("val/acc", task_epochs=2),
        Plain(),
    )
    trainer = quiet_trainer(callback, monitor)
    for epochs in (1, 2):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(model, loader(0), [loader(0, 16, shuffle=False)])
    assert callback.clock.visits == [0, 0]
    assert len(monitor.matrix) == 2
