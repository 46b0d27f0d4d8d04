import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.low_lr import LowLearningRate
from tests.support.training import Plain, loader, quiet_trainer


class Rates(Plain):
    """Plain SGD without momentum that notes each step's effective rate: ‖Δθ‖ / ‖gradient‖."""

    def __init__(self, scheduler=None):
        super().__init__()
        self.scheduler, self.used, self.shown = scheduler, [], []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_before_optimizer_step(self, optimizer):
        bias = self.net[4].bias
        self.before, self.gradient = bias.detach().clone(), bias.grad.clone()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        moved = self.net[4].bias.detach() - self.before
        self.used.append(round((moved.norm() / self.gradient.norm()).item(), 5))
        self.shown.append(self.optimizers().param_groups[0]["lr"])


def rates_of_tasks(callback, model, tasks=3):
    for task in range(tasks):
        quiet_trainer(callback).fit(model, loader(task, samples=32))
    return [model.used[4 * task : 4 * task + 4] for task in range(tasks)]


def test_every_task_but_an_unprotected_first_is_slower_by_the_factor_and_no_more():
    rates = rates_of_tasks(LowLearningRate(0.1, from_first_task=False), Rates())
    assert rates == [[pytest.approx(1.0)] * 4] + [[pytest.approx(0.1)] * 4] * 2


def test_the_first_task_too_where_it_has_something_to_protect():
    assert rates_of_tasks(LowLearningRate(0.1), Rates(), tasks=1) == [[pytest.approx(0.1)] * 4]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 ** (s // 2)),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5) for _ in range(2)],
            [100],
        ),
    ],
    ids=["recursive", "closed form", "sequential"],
)
def test_schedulers_keep_their_course(scheduler):
    model = Rates(scheduler)
    rates = rates_of_tasks(LowLearningRate(0.1, from_first_task=False), model)
    course = [1.0, 1.0, 0.5, 0.5]
    assert rates[0] == pytest.approx(course)
    assert rates[1] == rates[2] == pytest.approx([0.1 * rate for rate in course])
    assert model.shown == pytest.approx([1.0, 0.5, 0.5, 0.25] * 3)  # after the scheduler


def test_one_fit_over_a_stream_of_tasks():
    callback, model = LowLearningRate(0.5, from_first_task=False, task_epochs=1), Rates()
    quiet_trainer(callback, max_epochs=3).fit(model, loader(0, samples=16))
    assert model.used == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.5, 0.5])


def test_the_optimizer_is_left_as_it_was():
    callback, model = LowLearningRate(), Rates()
    trainer = quiet_trainer(callback)
    trainer.fit(model, loader(0))
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_bad_factors_are_refused():
    with pytest.raises(MisconfigurationException, match="factor=0 "):
        LowLearningRate(0)
