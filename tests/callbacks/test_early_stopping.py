import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.callbacks.early_stopping import TaskEarlyStopping
from recall_lightning.recall.settings import ImportanceSettings
from tests.support.callbacks import statistic
from tests.support.training import Plain, loader, quiet_trainer, task_data


class Scripted(Plain):
    """A module whose score on the task that is trained follows a script."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.validations = 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log(
            "val/acc", self.scores[min(self.validations, len(self.scores) - 1)] + dataloader_idx
        )

    def on_validation_epoch_end(self):
        self.validations += not self.trainer.sanity_checking

    def on_save_checkpoint(self, checkpoint):
        checkpoint["validations"] = self.validations

    def on_load_checkpoint(self, checkpoint):
        self.validations = checkpoint["validations"]


class Epochs(Callback):
    """Counts the epochs of each task."""

    def __init__(self):
        self.tasks = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.tasks.append(trainer.datamodule.task_at(trainer.current_epoch))


def fit(scores, tasks=2, epochs=6, checkpoint=None, extra=(), trainer=(), **kwargs):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(tasks)]
    stream = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=epochs)
    counted = Epochs()
    stopping = TaskEarlyStopping("val/acc", **kwargs)
    torch.manual_seed(0)
    model = Scripted(scores)
    quiet_trainer(
        stopping,
        counted,
        *extra,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in extra),
        max_epochs=tasks * epochs,
        reload_dataloaders_every_n_epochs=1,
        **dict(trainer),
    ).fit(model, datamodule=stream, ckpt_path=checkpoint)
    return counted.tasks, model


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6] * 2, 1, [6, 6]),  # always better
        ([0.5, 0.4, 0.4, 0.6, 0.6, 0.6], 1, [3, 3]),  # worse at the second: the third is the last
        ([0.5, 0.4, 0.4, 0.3, 0.6, 0.6, 0.6], 2, [4, 4]),
    ],
)
def test_a_task_that_stops_improving_has_one_more_epoch_and_the_next_one_starts(
    scores, patience, epochs
):
    tasks, _ = fit(scores, patience=patience)
    assert [tasks.count(0), tasks.count(1)] == epochs
    assert tasks == sorted(tasks)


def test_every_task_has_min_epochs():
    tasks, _ = fit([0.5], patience=1, min_epochs=4)
    assert [tasks.count(0), tasks.count(1)] == [4, 4]


def test_too_small_an_improvement_is_none():
    rising = [0.1 + 0.01 * i for i in range(12)]
    assert len(fit(rising, patience=1)[0]) == 12
    assert len(fit(rising, patience=1, min_delta=0.05)[0]) < 12


def test_a_score_that_is_no_number_is_no_improvement_and_none_to_beat():
    nan = float("nan")
    assert len(fit([nan, 0.1, 0.2, 0.3, 0.4, 0.5], tasks=1, patience=2)[0]) == 6
    assert len(fit([0.1, nan, nan, nan, nan, nan], tasks=1, patience=2)[0]) == 4


def test_fewer_validation_loaders_than_tasks_are_refused():
    stream = TaskStream.from_datasets([task_data(0), task_data(1)])

    class OneLoader(type(stream)):
        def val_dataloader(self):
            return super().val_dataloader()[:1]

    stream.__class__ = OneLoader
    stopping = TaskEarlyStopping("val/acc")
    trainer = quiet_trainer(stopping, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    with pytest.raises(MisconfigurationException, match="TaskEarlyStopping: there must be a val"):
        trainer.fit(Plain(), datamodule=stream)


def test_a_decision_within_an_epoch_ends_the_task_with_it():
    tasks, _ = fit([0.5, 0.6, 0.4], tasks=1, patience=1, trainer={"val_check_interval": 0.5})
    assert tasks == [0, 0]  # decided in the middle of the second epoch


def test_what_happens_at_a_tasks_end_happens_at_the_new_one():
    for source in ("optimizer", "gradients"):
        callback = RecallCallback(
            every=100,
            rule="importance",
            importance=ImportanceSettings(source, steps=4),
        )
        monitor = ForgettingMonitor("val/acc")
        fit([0.5], patience=1, extra=[callback, monitor])
        assert [(r["task"], r["step"]) for r in callback.history] == [(0, 24), (1, 48)]
        assert len(monitor.matrix) == 2
        assert statistic(callback, "importance").tasks == 2


def test_a_resumed_run_ends_its_tasks_as_it_would_have(tmp_path):
    scores = [0.5, 0.6, 0.5, 0.5, 0.7, 0.6, 0.6]
    saver = ModelCheckpoint(tmp_path, "{step:03d}", every_n_train_steps=3, save_top_k=-1)
    tasks, model = fit(scores, patience=1, extra=[saver])
    for path in sorted(tmp_path.iterdir()):
        left, resumed = fit(scores, patience=1, checkpoint=path)
        assert left == tasks[len(tasks) - len(left) :]
        for name, weight in model.state_dict().items():
            assert weight.equal(resumed.state_dict()[name])


def test_lightnings_own_is_warned_of():
    stream = TaskStream.from_datasets([task_data(0), task_data(1)])
    trainer = quiet_trainer(
        EarlyStopping("val/acc/dataloader_idx_0", mode="max"),
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
    )
    with pytest.warns(UserWarning, match="ends the whole stream.*TaskEarlyStopping"):
        trainer.fit(Plain(), datamodule=stream)


def test_without_a_stream_it_is_refused():
    with pytest.raises(MisconfigurationException, match="TaskEarlyStopping ends the tasks of a"):
        quiet_trainer(TaskEarlyStopping("val/acc")).fit(Plain(), loader(0), loader(0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"patience": 0}, "patience=0 must be an integer of 1 or more"),
        ({"min_epochs": 1.5}, "min_epochs=1.5 must be"),
        ({"min_delta": -1}, "min_delta=-1 must be a number of 0 or more"),
        ({"mode": "best"}, "mode='best' must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(MisconfigurationException, match=said):
        TaskEarlyStopping("val/acc", **arguments)


def test_a_metric_that_is_not_logged_is_named():
    stream = TaskStream.from_datasets([(task_data(0), task_data(0, 16))])
    trainer = quiet_trainer(TaskEarlyStopping("val/f1"), reload_dataloaders_every_n_epochs=1)
    with pytest.raises(MisconfigurationException, match="TaskEarlyStopping: monitor='val/f1' was"):
        trainer.fit(Plain(), datamodule=stream)
