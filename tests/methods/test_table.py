import inspect
from pkgutil import iter_modules

import pytest
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback, TaskStream, methods
from recall_lightning.data import ReplayBuffer
from recall_lightning.methods.table import METHODS, records
from tests.support.training import task_data

WITH_CALLBACK = [method for method in METHODS.values() if method.callback]


def stream():
    return TaskStream.from_datasets([(task_data(0), task_data(0, 16))], batch_size=8)


def test_the_methods_are_these_in_this_order():
    assert list(METHODS) == [
        "finetune", "joint", "low_lr", "l2", "sfa", "wise_ft", "ewc", "ewc_lora", "kfac_penalty",
        "lwf", "self_replay", "replay", "finch", "slao", "osf", "hft", "adaptive", "recall_paper",
        "recall_paper_loop", "recall",
    ]  # fmt: skip
    assert all(method.name == name and method.summary for name, method in METHODS.items())


def test_every_record_in_a_file_of_the_folder_is_in_the_table():
    files = [module.name for module in iter_modules(methods.__path__)]
    found = {method.name: method for file in files for method in records(file)}
    assert found == dict(METHODS)


def test_a_method_is_a_callback_or_an_option_of_the_stream_or_nothing():
    assert {method.name for method in METHODS.values() if not method.callback} == {
        "finetune", "joint", "replay",
    }  # fmt: skip
    assert all(issubclass(method.callback, Callback) for method in WITH_CALLBACK)
    assert not any(method.needs_old_data for method in WITH_CALLBACK)
    assert METHODS["recall"].callback is RecallCallback


def test_joint_training_and_replay_alone_need_old_data():
    assert {n for n, method in METHODS.items() if method.needs_old_data} == {"joint", "replay"}


def test_methods_of_one_callback_differ_in_their_defaults():
    told_apart = [(method.callback, tuple(method.defaults.items())) for method in WITH_CALLBACK]
    assert len(set(told_apart)) == len(told_apart)
    for method in WITH_CALLBACK:
        assert method.defaults.keys() <= inspect.signature(method.callback).parameters.keys()


def test_every_callback_tells_by_one_argument_whether_the_first_task_has_something_to_keep():
    for method in WITH_CALLBACK:
        parameter = inspect.signature(method.callback).parameters[method.keeps_first]
        assert parameter.default is True


def test_every_callback_is_built_without_arguments():
    for method in WITH_CALLBACK:
        assert type(method.callback(**method.defaults)) is method.callback


def test_old_data_is_an_option_of_the_stream():
    buffer = ReplayBuffer()
    joint, replay, neither = stream(), stream(), stream()
    METHODS["joint"].give_old_data(joint)
    METHODS["replay"].give_old_data(replay, buffer)
    METHODS["recall"].give_old_data(neither)
    assert (joint.joint, joint.replay) == (True, None)
    assert (replay.joint, replay.replay) == (False, buffer)
    assert (neither.joint, neither.replay) == (False, None)


@pytest.mark.parametrize("method", ["joint", "replay"])
@pytest.mark.parametrize("datamodule", [None, LightningDataModule()])
def test_only_a_stream_can_give_old_data(method, datamodule):
    kind = type(datamodule).__name__
    with pytest.raises(MisconfigurationException, match=f"method='{method}'.*the data is {kind}"):
        METHODS[method].give_old_data(datamodule, ReplayBuffer())


def test_methods_that_read_no_old_data_take_any_data():
    METHODS["finetune"].give_old_data(None)


def test_what_a_person_imports_is_exported_by_the_folder():
    exported = {getattr(methods, name) for name in methods.__all__ if name != "FILES"}
    assert exported == {method.callback for method in WITH_CALLBACK} - {RecallCallback}
