"""Lightning's own callbacks beside ours."""

import csv
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.weights.naming import named_weights
from tests.support.training import Plain, loader, quiet_trainer


class Watched(RecallCallback):
    """Keeps the weights after every step, merged where it merges."""

    def __init__(self, **kwargs):
        super().__init__(rule=Uniform(0.3), **kwargs)
        self.after = {}

    def on_task_step(self, trainer, pl_module, task):
        super().on_task_step(trainer, pl_module, task)
        self._keep(trainer, pl_module)

    def on_task_end(self, trainer, pl_module, task):
        super().on_task_end(trainer, pl_module, task)
        self._keep(trainer, pl_module)

    def _keep(self, trainer, pl_module):
        weights = named_weights(pl_module).items()
        self.after[trainer.global_step] = {name: weight.clone() for name, weight in weights}


SAVES = {
    "steps": {"every_n_train_steps": 2},
    "epochs": {"every_n_epochs": 1},
    "epoch's end": {"save_on_train_epoch_end": True},
    "time": {"train_time_interval": timedelta(microseconds=1)},
    "best": {"monitor": "val/acc", "mode": "max", "save_top_k": 2},
    "weights only": {"every_n_train_steps": 2, "save_weights_only": True},
    "last": {"save_top_k": 0, "save_last": True},
    "last as a link": {"save_last": "link"},
    "on exceptions": {"save_top_k": 0, "save_on_exception": True},
}


class Fails(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 21:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize("how", SAVES)
def test_what_is_saved_is_merged(how, tmp_path):
    saver = ModelCheckpoint(tmp_path, **({"save_top_k": -1} | SAVES[how]))
    watched = Watched(every=2)
    trainer = quiet_trainer(saver, watched, enable_checkpointing=True, max_epochs=3)
    if how == "on exceptions":
        with pytest.raises(RuntimeError, match="interrupted"):
            trainer.fit(Fails(), loader(0), loader(0, shuffle=False))
    else:
        trainer.fit(Plain(), loader(0), loader(0, shuffle=False))
    assert len(watched.history) >= 10
    saved = list(tmp_path.glob("*.ckpt"))
    assert saved
    for path in saved:
        checkpoint = torch.load(path, weights_only=True)
        after = watched.after[checkpoint["global_step"]]
        assert all(torch.equal(checkpoint["state_dict"][name], w) for name, w in after.items())


def test_learning_rates_are_logged_as_without_merges(tmp_path):
    def rates(name, *callbacks):
        torch.manual_seed(0)
        logger = CSVLogger(tmp_path, name)
        monitor = LearningRateMonitor(logging_interval="step")
        quiet_trainer(monitor, *callbacks, logger=logger, log_every_n_steps=1).fit(
            Plain(), loader(0)
        )
        with Path(logger.log_dir, "metrics.csv").open() as file:
            return [row["lr-Adam"] for row in csv.DictReader(file) if row["lr-Adam"]]

    assert rates("plain") == rates("merged", RecallCallback(every=2)) == ["0.01"] * 8


def test_steps_under_an_accumulation_schedule_are_optimizer_steps():
    recall = Watched(every=2)
    schedule = GradientAccumulationScheduler({0: 4, 1: 2})
    quiet_trainer(recall, schedule, max_epochs=2).fit(Plain(), loader(0))
    assert [record["step"] for record in recall.history] == [2, 4, 6]


def test_early_stopping_where_every_fit_is_a_task_ends_the_task_with_a_merge():
    stop = EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    recall = Watched(every=1.0)
    quiet_trainer(recall, stop, max_epochs=5).fit(Plain(), loader(0), loader(0, shuffle=False))
    assert [record["step"] for record in recall.history] == [8]


def test_averages_kept_apart_are_refused():
    trainer = quiet_trainer(RecallCallback(), StochasticWeightAveraging(1e-2))
    with pytest.raises(MisconfigurationException, match="Averaging puts an average of its"):
        trainer.fit(Plain(), loader(0))
