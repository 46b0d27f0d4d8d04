from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from recall_lightning.callbacks._trainer.loggers import Point, log_figure, log_scalars, run_folder


class OwnLogger(Logger):
    """A logger of one's own, that shows no images."""

    name, version, save_dir = "own", 3, "somewhere"

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged = (metrics, step)


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_a_runs_folder_is_that_of_its_first_logger(tmp_path, kind):
    logger = kind(tmp_path)
    trainer = Trainer(logger=[logger, OwnLogger()], accelerator="cpu", default_root_dir=tmp_path)
    assert str(run_folder(trainer)) == logger.log_dir == trainer.log_dir


def test_of_another_logger_it_is_its_name_and_version():
    trainer = Trainer(logger=OwnLogger(), accelerator="cpu")
    assert str(run_folder(trainer)) == "somewhere/own/version_3"


def test_without_a_logger_there_is_none():
    assert run_folder(Trainer(logger=False, accelerator="cpu")) is None


def test_scalars_reach_every_logger_with_the_optimizer_step():
    loggers = [OwnLogger(), OwnLogger()]
    trainer = SimpleNamespace(loggers=loggers, global_step=7)
    log_scalars(trainer, {"a": 1.0})
    assert [each.logged for each in loggers] == [({"a": 1.0}, 7)] * 2


def test_a_figure_that_no_logger_shows_is_not_drawn(tmp_path):
    trainer = Trainer(logger=[CSVLogger(tmp_path), OwnLogger()], accelerator="cpu")
    log_figure(trainer, "figure", lambda: pytest.fail("drawn"), Point("step", 1))
