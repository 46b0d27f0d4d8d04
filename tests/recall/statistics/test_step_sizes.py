import copy

import pytest
import torch

from recall_lightning.recall.statistics.step_sizes import StepSizes


def optimizer_of(*rates):
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": rate} for rate in rates], lr=1.0)


def seen(*rates, sizes=None, number=0):
    sizes = sizes or StepSizes()
    for rate in rates:
        sizes.observe(number, optimizer_of(rate))
    return sizes


def test_the_largest_rate_so_far_is_all_of_it():
    assert [seen(*rates).share for rates in ([0.1], [0.1, 0.4], [0.1, 0.4, 0.1])] == [1, 1, 0.25]


def test_a_task_has_a_largest_of_its_own():
    sizes = seen(0.4)
    sizes.start_task(None)
    assert seen(0.1, sizes=sizes).share == 1


def test_the_largest_group_counts_and_the_optimizer_that_is_least_decayed():
    sizes = StepSizes()
    for rates in ((0.1, 1.0), (0.1, 0.5)):
        sizes.observe(0, optimizer_of(*rates))
    assert sizes.share == 0.5
    assert seen(0.2, 0.16, sizes=sizes, number=1).share == pytest.approx(0.8)


@pytest.mark.parametrize(("rates", "share"), [((), 1), ((0.0,), 1), ((0.1, 0.0), 1e-6)])
def test_rates_that_are_not_known_or_zero(rates, share):
    assert seen(*rates).share == share


def test_an_optimizer_that_finds_its_own_rate_has_no_share():
    optimizer = optimizer_of(0.1)
    optimizer.param_groups[0]["lr"] = None
    sizes = StepSizes()
    sizes.observe(0, optimizer)
    assert sizes.share == 1


def test_a_state_brings_back_the_largest():
    back = StepSizes()
    back.load_state_dict(copy.deepcopy(seen(0.4, 0.1).state_dict()))
    assert back.share == 0.25
    assert seen(0.2, sizes=back).share == 0.5
