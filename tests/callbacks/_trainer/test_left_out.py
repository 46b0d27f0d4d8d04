import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.ewc_lora import UpdateConsolidation
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.kfac_penalty import KfacPenalty
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.lwf import LearningWithoutForgetting
from tests.support.training import Plain, loader, quiet_trainer


class Spectral(nn.Module):
    """Filters its inputs by complex weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)
        self.filter = nn.Linear(16, 16, dtype=torch.complex64)

    def forward(self, x):
        return self.second(self.filter(torch.fft.fft(self.first(x))).abs())


@pytest.mark.parametrize(
    "make",
    [
        RecallCallback,
        ElasticWeightConsolidation,
        HalfFineTuning,
        KfacPenalty,
        L2ToSnapshot,
        UpdateConsolidation,
    ],
)
def test_weights_of_complex_numbers_are_named(make, tmp_path):
    callback = make()
    trainer = Trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path)
    message = f"{make.__name__} does not protect net.filter.weight, net.filter.bias: weights of com"
    with pytest.warns(UserWarning, match=message):
        trainer.fit(Plain(Spectral()), loader(0))


def test_frozen_ones_are_no_matter(recwarn):
    net = Spectral()
    net.filter.requires_grad_(False)
    quiet_trainer(RecallCallback()).fit(Plain(net), loader(0))
    assert not any("complex" in str(w.message) for w in recwarn)


def test_a_teacher_of_complex_weights_is_refused():
    with pytest.raises(MisconfigurationException, match=r"the teacher's net\.filter\.weight"):
        quiet_trainer(LearningWithoutForgetting(from_first_task=False)).fit(
            Plain(Spectral()), loader(0)
        )
