import copy

import pytest
import torch

from recall_lightning.recall.statistics.step_sizes import StepSizes


def optimizer_of(*rates):
    groups = [{"params": [torch.zeros(1)], "lr": 1.0} for _ in rates]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return optimizer


def seen(*rates, steps=None, number=0):
    steps = steps or StepSizes()
    for rate in rates:
        steps.observe(number, optimizer_of(rate))
    return steps


@pytest.mark.parametrize(
    ("rates", "share"),
    [
        ([0.1] * 4, 4 / 48),
        ([0.1] * 48, 1),
        ([0.1] * 120, 1),
        ([0.1, 0.4], 1.25 / 48),
        ([0.4, 0.1], 1.25 / 48),
        ([None] * 4, 4 / 48),
    ],
)
def test_forty_eight_steps_of_the_largest_size_are_all_of_it(rates, share):
    assert seen(*rates).share == pytest.approx(share)


def test_steps_of_no_size_are_next_to_nothing():
    assert all(0 < seen(*rates).share < 1e-6 for rates in ([], [0.0], [0.0] * 120))


def test_a_merge_begins_anew_and_the_largest_stays():
    steps = seen(0.4, 0.4)
    steps.merged()
    assert seen(0.1, steps=steps).share == 0.25 / 48


def test_a_task_has_a_largest_of_its_own():
    steps = seen(0.4)
    steps.start_task(None)
    assert seen(0.1, steps=steps).share == 1 / 48


def test_the_largest_group_counts_and_the_optimizer_that_went_farthest():
    steps = StepSizes()
    steps.observe(0, optimizer_of(0.1, 1.0))
    assert seen(0.2, 0.2, steps=steps, number=1).share == 2 / 48


def test_a_state_brings_back_the_largest_and_the_sum():
    back = StepSizes()
    back.load_state_dict(copy.deepcopy(seen(0.4, 0.1).state_dict()))
    assert seen(0.1, steps=back).share == pytest.approx(1.5 / 48)
