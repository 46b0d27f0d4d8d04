"""Fits that are a task each, resumed from a checkpoint of the midst of one."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import ForgettingMonitor, RecallCallback
from tests.callbacks.test_task_aware import Diary
from tests.support.callbacks import FEW, statistic
from tests.support.training import Plain, loader, quiet_trainer, task_data


def fit(data, *callbacks, epochs=2, checkpoint=None, **kwargs):
    held_out = [loader(task, 16, shuffle=False) for task in range(2)]
    trainer = quiet_trainer(*callbacks, max_epochs=epochs, **kwargs)
    trainer.fit(Plain(), data, held_out, ckpt_path=checkpoint)


def saved(folder, data, *callbacks):
    """Checkpoints of the epochs of task 0, the second of which is its last."""
    every = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    fit(data, *callbacks, every, enable_checkpointing=True)
    return [folder / f"epoch={epoch}.ckpt" for epoch in range(2)]


def test_from_the_midst_of_a_task_with_other_data_is_refused_and_both_ways_are_named(tmp_path):
    midst, _ = saved(tmp_path, loader(0), Diary())
    with pytest.raises(MisconfigurationException) as error:
        fit(loader(1), Diary(), epochs=4, checkpoint=midst)
    assert "go_on_with_task() before the fit says that task 0 goes on" in str(error.value)
    assert "begin_task(1) that task 1 begins" in str(error.value)


def test_from_the_midst_of_a_task_with_its_data_it_goes_on_for_as_long_as_is_said(tmp_path):
    midst, _ = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    fit(loader(0), diary, epochs=4, checkpoint=midst)
    assert diary.of("start", "end") == [("end", 0, 32)]


def test_a_task_that_goes_on_with_other_data_is_said_to(tmp_path):
    midst, _ = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    diary.go_on_with_task()
    fit(loader(0, samples=32), diary, checkpoint=midst)
    assert diary.of("start", "end") == [("end", 0, 12)]


def test_a_task_that_is_said_to_begin_ends_the_one_that_is_left(tmp_path):
    midst, _ = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    diary.begin_task(1)
    fit(loader(1), diary, epochs=4, checkpoint=midst)
    assert diary.of("start", "end") == [("end", 0, 8), ("start", 1, 8), ("end", 1, 32)]


@pytest.mark.parametrize("rule", [{}, {"rule": "rbf", "samples": FEW}, {"rule": "importance"}])
def test_what_was_learned_of_a_task_that_is_left_is_kept(rule, tmp_path):
    midst, _ = saved(tmp_path, loader(0), RecallCallback(**rule), ForgettingMonitor("val/acc"))
    recall, monitor = RecallCallback(**rule), ForgettingMonitor("val/acc")
    recall.begin_task(1)
    with pytest.warns(UserWarning, match="its row of the matrix is the last one before it"):
        fit(loader(1), recall, monitor, epochs=3, checkpoint=midst)
    assert torch.tensor(monitor.matrix).shape == (2, 2)
    assert {record["task"] for record in recall.history} == {0, 1}
    assert [record["step"] for record in recall.history if record["task"] == 0][-1] == 8
    if rule.get("rule") == "importance":
        assert statistic(recall, "importance").tasks == 2


def test_from_the_end_of_a_task_the_next_one_begins_and_data_that_is_the_same_is_said(tmp_path):
    _, end = saved(tmp_path, loader(0), Diary())
    for task in range(2):
        diary = Diary()
        if task:
            fit(loader(task), diary, epochs=3, checkpoint=end)
        else:
            with pytest.warns(UserWarning, match="taken for task 1, with the same training data"):
                fit(loader(task), diary, epochs=3, checkpoint=end)
        assert diary.of("start", "end") == [("start", 1, 16), ("end", 1, 24)]


@pytest.mark.parametrize("told", [False, True])
def test_another_task_with_nothing_left_to_train_is_refused(told, tmp_path):
    _, end = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    if told:
        diary.begin_task(1)
    with pytest.raises(MisconfigurationException, match="had come to max_epochs=2 before"):
        fit(loader(0 if told else 1), diary, checkpoint=end)


@pytest.mark.parametrize("told", [False, True])
def test_a_run_that_has_ended_may_be_started_again(told, tmp_path):
    _, end = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    if told:
        diary.begin_task(0)
    fit(loader(0), diary, checkpoint=end)
    assert diary.of("start", "end") == []


def test_after_a_checkpoint_with_nothing_left_to_train_steps_count_on(tmp_path):
    _, end = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    fit(loader(0), diary, checkpoint=end)
    trainer = quiet_trainer(diary)
    trainer.fit(Plain(), loader(1))
    assert diary.steps_trained(trainer) == 16 + 8


def test_from_the_end_of_a_task_that_is_said_to_go_on_it_is_visited_again(tmp_path):
    _, end = saved(tmp_path, loader(0), Diary())
    diary = Diary()
    diary.go_on_with_task()
    fit(loader(0), diary, epochs=3, checkpoint=end)
    assert diary.clock.visits == [0, 0]


def test_data_that_tells_nothing_is_said(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from task_data(0, 16)

    data = DataLoader(Stream(), batch_size=8)
    midst, _ = saved(tmp_path, data, Diary())
    diary = Diary()
    with pytest.warns(UserWarning, match="is taken to go on, as the training data does not tell"):
        fit(data, diary, checkpoint=midst)
    assert diary.of("start") == []


def test_fits_may_come_back_to_a_task():
    recall, monitor, model = RecallCallback(), ForgettingMonitor("val/acc"), Plain()
    for task in [0, 1, 0, 1]:
        recall.begin_task(task)
        held_out = [loader(each, 16, shuffle=False) for each in range(2)]
        quiet_trainer(recall, monitor).fit(model, loader(task), held_out)
    assert monitor.record.trained == [0, 1, 0, 1]
    assert [record["visit"] for record in recall.history][-1] == 3


def test_begin_task_is_refused_where_the_tasks_are_told():
    diary = Diary(task_epochs=1)
    diary.begin_task(1)
    with pytest.raises(MisconfigurationException, match="here the datamodule or task_epochs tells"):
        fit(loader(0), diary)
    with pytest.raises(MisconfigurationException, match="task=-1 must be an integer from 0"):
        diary.begin_task(-1)


def loaded(checkpoint, *callbacks):
    states = torch.load(checkpoint, weights_only=False)["callbacks"]
    for callback in callbacks:
        callback.load_state_dict(states[callback.state_key])
    return callbacks


def test_a_state_that_is_loaded_by_hand_counts_on_with_a_trainer_of_its_own(tmp_path):
    _, end = saved(tmp_path, loader(0), RecallCallback(), ForgettingMonitor("val/acc"))
    recall, monitor = loaded(end, RecallCallback(), ForgettingMonitor("val/acc"))
    fit(loader(1), recall, monitor, epochs=1)
    assert [(record["task"], record["step"]) for record in recall.history] == [(0, 16), (1, 24)]
    assert len(monitor.matrix) == 2


def test_one_from_the_midst_of_a_task_begins_it_anew_and_that_is_said(tmp_path):
    midst, _ = saved(tmp_path, loader(0), Diary())
    (diary,) = loaded(midst, Diary())
    with pytest.warns(UserWarning, match="from the midst of the task 'task 0', after 8 steps"):
        fit(loader(0), diary)
    assert diary.of("start", "end") == [("start", 0, 0), ("end", 0, 16)]
