import inspect

import pytest
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback, TaskStream
from recall_lightning.data import ReplayBuffer
from recall_lightning.methods.table import KEEPS_FIRST, METHODS, give_old_data
from tests.support.training import task_data


def stream():
    return TaskStream.from_datasets([(task_data(0), task_data(0, 16))], batch_size=8)


def test_the_methods_are_these_in_this_order():
    assert list(METHODS) == [
        "finetune", "joint", "low_lr", "l2", "sfa", "wise_ft", "ewc", "lwf", "replay", "hft",
        "adaptive", "recall_paper", "recall_paper_loop", "recall",
    ]  # fmt: skip
    assert all(method.name == name and method.summary for name, method in METHODS.items())


def test_a_method_is_a_callback_of_its_own_or_an_option_of_the_stream_or_nothing():
    without = {name for name, method in METHODS.items() if method.callback is None}
    assert without == {"finetune", "joint", "replay"}
    callbacks = [method.callback for name, method in METHODS.items() if name not in without]
    assert len(set(callbacks)) == len(callbacks)
    assert all(issubclass(callback, Callback) for callback in callbacks)
    assert METHODS["recall"].callback is RecallCallback


def test_joint_training_and_replay_alone_need_old_data():
    assert {n for n, method in METHODS.items() if method.needs_old_data} == {"joint", "replay"}


def test_every_callback_tells_by_one_argument_whether_the_first_task_has_something_to_keep():
    assert KEEPS_FIRST.keys() == {n for n, method in METHODS.items() if method.callback}
    for name, argument in KEEPS_FIRST.items():
        parameter = inspect.signature(METHODS[name].callback).parameters[argument]
        assert parameter.default is True


def test_every_callback_is_built_without_arguments():
    for method in METHODS.values():
        if method.callback is not None:
            assert type(method.callback()) is method.callback


def test_old_data_is_an_option_of_the_stream():
    buffer = ReplayBuffer()
    joint, replay, neither = stream(), stream(), stream()
    give_old_data("joint", joint, buffer)
    give_old_data("replay", replay, buffer)
    give_old_data("recall", neither, buffer)
    assert (joint.joint, joint.replay) == (True, None)
    assert (replay.joint, replay.replay) == (False, buffer)
    assert (neither.joint, neither.replay) == (False, None)


@pytest.mark.parametrize("method", ["joint", "replay"])
@pytest.mark.parametrize("datamodule", [None, LightningDataModule()])
def test_only_a_stream_can_give_old_data(method, datamodule):
    kind = type(datamodule).__name__
    with pytest.raises(MisconfigurationException, match=f"method='{method}'.*the data is {kind}"):
        give_old_data(method, datamodule, ReplayBuffer())


def test_methods_that_read_no_old_data_take_any_data():
    give_old_data("finetune", None, ReplayBuffer())
