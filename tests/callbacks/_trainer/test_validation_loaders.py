import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from recall_lightning import ForgettingMonitor
from tests.support.training import Plain, loader, quiet_trainer, task_data


def fits(*orders, data=None):
    """Fit a task after the other, each with held-out data sets in an order of its own."""
    torch.manual_seed(0)
    data = data or [task_data(task, samples=16) for task in range(3)]
    model, monitor = Plain(), ForgettingMonitor(monitor="val/acc")
    for task, order in enumerate(orders):
        held_out = [DataLoader(data[place], 8) for place in order]
        quiet_trainer(monitor).fit(model, loader(task), held_out)
    return monitor


def test_loaders_that_change_places_between_fits_are_refused_before_training():
    with pytest.raises(MisconfigurationException, match=r"dataloader 0 has the data of .* 1 when"):
        fits([0, 1, 2], [1, 0, 2])


def test_a_refused_order_is_not_the_one_that_counts_from_then_on():
    data = [task_data(task, samples=16) for task in range(2)]
    model, monitor = Plain(), ForgettingMonitor(monitor="val/acc")

    def fit(task, order):
        held_out = [DataLoader(data[place], 8) for place in order]
        quiet_trainer(monitor).fit(model, loader(task), held_out)

    fit(0, [0, 1])
    for _ in range(2):
        with pytest.raises(MisconfigurationException, match="another task"):
            fit(1, [1, 0])
    fit(1, [0, 1])


def test_one_that_is_left_out_moves_the_others():
    with pytest.raises(MisconfigurationException, match=r"dataloader 0 has the data of .* 1 when"):
        fits([0, 1, 2], [1, 2])


@pytest.mark.parametrize("orders", [([0, 1, 2], [0, 1, 2]), ([0, 1], [0, 1, 2])])
def test_new_loaders_of_the_same_data_and_new_tasks_behind_them_are_fine(orders):
    assert len(fits(*orders).matrix) == 2


def test_data_that_is_there_twice_tells_no_order():
    shared = task_data(0, samples=16)
    assert len(fits([0, 1], [0, 1], data=[shared, shared]).matrix) == 2


def test_data_sets_that_cannot_be_told_again_tell_nothing():
    plain = [list(task_data(task, samples=16)) for task in range(2)]
    assert len(fits([0, 1], [1, 0], data=plain).matrix) == 2
