import math

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.callbacks import WarmupCosine
from tests.support.training import Plain, loader, quiet_trainer

WHOLE = {"max_epochs": 2}


class Rates(Plain):
    def __init__(self):
        super().__init__(lr=1.0)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)


def rates(callback, **kwargs):
    model = Rates()
    quiet_trainer(callback, **kwargs).fit(model, loader(0))
    return model.rates


def test_the_rate_follows_the_cosine_at_the_middle_of_each_step():
    expected = [(1 + math.cos(math.pi * (step + 0.5) / 16)) / 2 for step in range(16)]
    assert rates(WarmupCosine(warmup=0.0), **WHOLE) == pytest.approx(expected)
    assert rates(WarmupCosine("stream", warmup=0.0), **WHOLE) == pytest.approx(expected)


def test_over_the_task_it_starts_anew_with_each():
    callback = WarmupCosine(warmup=0.0)
    callback.task_epochs = 1
    found = rates(callback, **WHOLE)
    assert found[:8] == pytest.approx(found[8:])
    assert found[7] < found[8]


def test_the_warm_up_rises_to_the_whole_rate():
    found = rates(WarmupCosine(warmup=0.5))
    assert found[:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert found[4:] == sorted(found[4:], reverse=True)


def test_a_length_that_is_not_known_is_asked_for():
    with pytest.raises(MisconfigurationException, match="over the stream has to know its length"):
        rates(WarmupCosine("stream"), max_epochs=-1, max_steps=3)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
def test_a_warm_up_out_of_its_range_is_refused(warmup):
    with pytest.raises(MisconfigurationException, match=r"warmup=.* must lie in \[0, 1\)"):
        WarmupCosine(warmup=warmup)
