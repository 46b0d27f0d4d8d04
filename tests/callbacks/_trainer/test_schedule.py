import warnings
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import TaskAwareCallback
from recall_lightning.callbacks._trainer.schedule import TaskSchedule
from tests.support.training import quiet_trainer


def trainer(datamodule=None, epoch=0, batches=8, **kwargs):
    made = quiet_trainer(**kwargs)
    made.datamodule = datamodule
    made.fit_loop.epoch_progress.current.completed = epoch
    made.fit_loop.max_batches = batches
    made.strategy._lightning_module = SimpleNamespace(automatic_optimization=True)
    return made


def tasks(schedule, epochs=6, **kwargs):
    task_at = schedule.task_at(trainer(**kwargs))
    return [task_at(epoch) for epoch in range(epochs)]


def test_task_epochs_are_epochs_a_task_or_each_tasks_first():
    assert tasks(TaskSchedule(2)) == [0, 0, 1, 1, 2, 2]
    assert tasks(TaskSchedule([0, 1, 4])) == [0, 1, 1, 1, 2, 2]


def test_a_datamodule_knows_better():
    datamodule = SimpleNamespace(task_at=lambda epoch: epoch // 3, task_names=["red", "blue"])
    assert tasks(TaskSchedule(2), datamodule=datamodule) == [0, 0, 0, 1, 1, 1]
    asked = trainer(datamodule)
    assert TaskSchedule(2).known_tasks(asked) == 2
    assert [TaskSchedule().task_name(asked, task) for task in (1, 2)] == ["blue", "task 2"]


def test_otherwise_every_fit_is_a_task_and_their_number_is_not_known():
    assert TaskSchedule().task_at(trainer()) is None
    assert TaskSchedule().known_tasks(trainer()) is None


@pytest.mark.parametrize(
    ("task_epochs", "limits", "known"),
    [(2, {"max_epochs": 5}, 3), (2, {"max_epochs": -1}, None), ([0, 2, 9], {}, 3)],
)
def test_the_number_of_tasks(task_epochs, limits, known):
    assert TaskSchedule(task_epochs).known_tasks(trainer(**limits)) == known


@pytest.mark.parametrize(
    ("task_epochs", "epoch", "limits", "last"),
    [
        (2, 0, {"max_epochs": 6}, 1),
        (2, 1, {"max_epochs": 6}, 1),
        (4, 4, {"max_epochs": 6}, 5),
        ([0, 3], 0, {"max_epochs": -1}, 2),
        (None, 2, {"max_epochs": 6}, 5),
        (None, 2, {"max_epochs": -1}, None),
    ],
)
def test_a_tasks_last_epoch_is_the_last_before_another_or_the_fits(
    task_epochs, epoch, limits, last
):
    assert TaskSchedule(task_epochs).last_epoch_of_task(trainer(epoch=epoch, **limits)) == last


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 3}, 24),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 9),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": -1}, None),
        ({"max_epochs": 3, "batches": float("inf")}, None),
    ],
)
def test_a_tasks_steps_follow_from_its_epochs_and_the_trainers_limits(limits, steps):
    assert TaskSchedule().steps_left(trainer(**limits)) == steps


@pytest.mark.parametrize("made", [TaskSchedule, TaskAwareCallback])
@pytest.mark.parametrize("bad", [0, -1, True, [], [1, 2], [0, 3, 2]])
def test_bad_task_epochs_are_refused_at_once(made, bad):
    with pytest.raises(MisconfigurationException, match="task_epochs="):
        made(bad)


@pytest.mark.parametrize("epoch", [0, 4, 6])
def test_no_epoch_behind_the_last_is_asked_for(epoch):
    asked = []
    datamodule = SimpleNamespace(task_at=lambda epoch: asked.append(epoch) or 0)
    last = TaskSchedule().last_epoch_of_task(trainer(datamodule, epoch, max_epochs=6))
    assert (last, max(asked, default=0) < 6) == (5 if epoch < 6 else None, True)


@pytest.mark.parametrize(("epochs", "said"), [(5, ["max_epochs=5 is no multiple"]), (6, [])])
def test_a_fit_that_ends_in_the_midst_of_a_task_is_said_to(epochs, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TaskSchedule(2).say_shortened_task(trainer(max_epochs=epochs))
        TaskSchedule([0, 2]).say_shortened_task(trainer(max_epochs=epochs))
    assert [str(each.message)[:27] for each in caught] == said
