import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods import Finch
from tests.methods.test_low_lr import Rates
from tests.support.baseline_tools import assert_same, trained_with_a_break
from tests.support.training import Plain, loader, quiet_trainer


class Losses(Rates):
    """Notes each batch's loss too."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


def expected(losses, factor, limit):
    mean, rates = losses[0], []
    for loss in losses:
        mean = 0.9 * mean + 0.1 * loss
        rates.append(min(limit, factor / math.sqrt(mean)))
    return rates


def test_the_rate_follows_the_root_of_the_mean_loss_anew_in_each_task():
    model = Losses()
    callback = Finch(0.5, limit=0.7, from_first_task=False)
    for task in range(3):
        quiet_trainer(callback).fit(model, loader(task, samples=32))
    wanted = (
        [1.0] * 4 + expected(model.losses[4:8], 0.5, 0.7) + expected(model.losses[8:], 0.5, 0.7)
    )
    assert model.used == pytest.approx(wanted, rel=1e-3)
    assert len({round(rate, 3) for rate in wanted}) > 5
    assert model.shown == [1.0] * 12


def test_the_rate_has_a_limit():
    model = Losses()
    quiet_trainer(Finch(100.0, limit=2.0)).fit(model, loader(0, samples=32))
    assert model.used == pytest.approx([2.0] * 4, rel=1e-3)


def test_accumulated_batches_are_one_step():
    class Accumulated(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(float(loss.detach()))
            return loss

        def on_before_optimizer_step(self, optimizer):
            means.append(callback.mean_loss)

    losses, means, callback = [], [], Finch(0.5)
    quiet_trainer(callback, accumulate_grad_batches=4).fit(Accumulated(), loader(0))
    first, second = (sum(losses[i : i + 4]) / 4 for i in (0, 4))
    assert means == pytest.approx([first, 0.9 * first + 0.1 * second])


def test_under_amps_scaler_the_loss_is_the_same_and_a_skipped_step_leaves_no_trace():
    model, callback = Losses(), Finch(0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    quiet_trainer(callback, plugins=[plugin]).fit(model, loader(0, samples=32))
    assert 0.1 < callback.mean_loss < 2
    assert model.shown == [1.0] * 4


@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path, stop_after):
    whole, resumed, _ = trained_with_a_break(
        lambda: Finch(0.3, task_epochs=1), tmp_path / "mid.ckpt", stop_after
    )
    assert_same(whole, resumed, rtol=0, atol=0)


def test_losses_below_0_take_the_limit():
    callback = Finch(0.5, limit=0.7)
    callback.clock.visits, callback.mean_loss = [0], -1.0
    assert callback.multiplier == 0.7


@pytest.mark.parametrize("name", ["factor", "limit"])
def test_bad_arguments_are_refused(name):
    with pytest.raises(MisconfigurationException, match=f"{name}=0 must be a positive number"):
        Finch(**{name: 0})
