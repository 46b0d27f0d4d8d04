"""That the baselines do on real data what they are for."""

import pytest
import torch
from lightning.pytorch import seed_everything

from recall_lightning import ForgettingMonitor
from recall_lightning.data import DigitsStream, ReplayBuffer
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.models import MLP, ClassifierModule
from tests.support.training import quiet_trainer


def forgetting(*callbacks, replay=None):
    seed_everything(0, verbose=False)
    stream = DigitsStream(scenario="permuted", num_tasks=3, epochs_per_task=5, replay=replay)
    monitor = ForgettingMonitor("val/acc")
    trainer = quiet_trainer(
        *callbacks,
        monitor,
        max_epochs=stream.total_epochs,
        check_val_every_n_epoch=5,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(ClassifierModule(MLP([64, 64, 64, 10]), num_classes=10), datamodule=stream)
    return monitor.summary()["forgetting"]


@pytest.fixture(scope="module")
def of_finetuning():
    torch.set_num_threads(1)
    return forgetting()


def test_ewc_forgets_less_than_finetuning(of_finetuning):
    ewc = ElasticWeightConsolidation(strength=3000.0, from_first_task=False)
    assert forgetting(ewc) < 0.7 * of_finetuning


def test_replay_forgets_less_than_finetuning(of_finetuning):
    assert forgetting(replay=ReplayBuffer(per_task=100)) < 0.5 * of_finetuning
