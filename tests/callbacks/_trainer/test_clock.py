import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream
from recall_lightning.callbacks._trainer.clock import TaskClock, clock_of
from tests.callbacks.test_task_aware import Diary
from tests.support.training import Plain, loader, quiet_trainer, task_data

KEYS = {"task", "task_ended", "step_in_task", "task_steps", "earlier_steps", "first_step"}
KEYS |= {"batches", "task_batches", "visits", "started", "shapes", "earlier_shapes", "marks"}
KEYS |= {"seen_global_step"}


class Other(Diary):
    """A second diary, told apart by its class in checkpoints."""


def fit(*callbacks, task=0, model=None, checkpoint=None, **kwargs):
    trainer = quiet_trainer(*callbacks, **kwargs)
    trainer.fit(model or Plain(), loader(task), ckpt_path=checkpoint)
    return trainer


def at(task, ended=False, step=0):
    clock = TaskClock()
    clock.visits = [] if task is None else list(range(task + 1))
    clock.task_ended, clock.step_in_task = ended, step
    return clock


def test_a_trainers_callbacks_share_one_clock_that_counts_each_batch_once():
    callbacks = [Diary(), RecallCallback(), ForgettingMonitor("val/acc"), Other()]
    fit(*callbacks)
    assert len({id(callback.clock) for callback in callbacks}) == 1
    assert callbacks[0].clock.state_dict()["batches"] == 8
    assert callbacks[0].step_in_task == 8
    assert callbacks[0].events == callbacks[3].events


def test_callbacks_have_their_task_hooks_in_their_order():
    events = []

    class First(Diary):
        name = "a"

        def on_task_step(self, trainer, pl_module, task):
            events.append((self.name, "step", self.step_in_task, self.task_ended))

        def on_task_end(self, trainer, pl_module, task):
            events.append((self.name, "end", self.step_in_task, self.task_ended))

    class Second(First):
        name = "b"

    fit(First(), Second())
    last = [("a", "step"), ("a", "end"), ("b", "step"), ("b", "end")]
    assert events[-4:] == [(name, what, 8, True) for name, what in last]


def test_a_callback_that_is_new_in_a_later_fit_joins_the_others_in_their_task():
    recall, diary, model = RecallCallback(), Diary(), Plain()
    for task in range(2):
        fit(recall, model=model, task=task)
    trainer = fit(diary, recall, model=model, task=2)
    assert diary.of("start", "end") == [("start", 2, 0), ("end", 2, 8)]
    assert diary.steps_trained(trainer) == 24


def test_a_monitor_that_is_new_in_a_later_fit_fills_the_row_of_its_task():
    recall, monitor, model = RecallCallback(), ForgettingMonitor("val/acc"), Plain()
    fit(recall, model=model)
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    with pytest.warns(UserWarning, match="its row of the matrix is empty"):
        quiet_trainer(recall, monitor).fit(model, loader(1), validation)
    assert torch.tensor(monitor.matrix).isnan().tolist() == [[True, True], [False, False]]
    assert monitor.record.boundaries == [(0, "task 0"), (8, "task 1")]


def test_a_callback_that_is_left_out_of_a_fit_keeps_the_time_it_had():
    both, first, second = Diary(), Other(), Other()
    fit(both, first)
    fit(both, second)
    assert (both.task, second.task, first.task) == (1, 1, 0)
    assert both.clock is second.clock is not first.clock


def test_two_trainers_that_take_turns_with_one_callback_go_on_from_each_other():
    diary, model = Diary(), Plain()
    trainers = [quiet_trainer(diary), quiet_trainer(diary)]
    for trainer in trainers:
        trainer.fit(model, loader(0))
    trainers[0].fit_loop.max_epochs += 1
    trainers[0].fit(model, loader(0))
    assert [task for _, task, _ in diary.of("end")] == [0, 1, 2]


def test_one_trainer_keeps_its_clock_over_its_fits():
    diary = Diary()
    trainer = fit(diary)
    clock = diary.clock
    trainer.validate(Plain(), loader(0, shuffle=False), verbose=False)
    trainer.fit_loop.max_epochs += 1
    trainer.fit(Plain(), loader(1))
    assert diary.clock is clock


@pytest.mark.parametrize(
    ("first", "second", "further"),
    [
        (at(None), at(0), 1),
        (at(1), at(0, ended=True), 0),
        (at(1), at(1, ended=True), 1),
        (at(1, step=3), at(1, step=2), 0),
    ],
)
def test_the_clock_that_has_counted_furthest_is_shared(first, second, further):
    shared = clock_of(quiet_trainer(), [first, second])
    assert shared.position == (first, second)[further].position


def test_of_clocks_that_have_counted_alike_the_trainers_own_stays():
    trainer = quiet_trainer()
    own = clock_of(trainer, [at(1)])
    assert clock_of(trainer, [at(1), own]) is own


def test_a_callback_whose_task_could_not_start_starts_it_in_the_next_fit_as_all_do():
    class Refuses(Other):
        def on_task_start(self, trainer, pl_module, task):
            super().on_task_start(trainer, pl_module, task)
            if len(self.of("start")) == 1:
                raise RuntimeError("not yet")

    diary, refuses = Diary(), Refuses()
    with pytest.raises(RuntimeError, match="not yet"):
        fit(diary, refuses)
    fit(diary, refuses)
    assert len(diary.of("start")) == len(refuses.of("start")) == 2
    assert refuses.of("end") == [("end", 0, 8)]


def test_a_restarted_task_starts_for_one_callback_and_is_counted_on():
    class Restarts(Diary):
        def on_task_step(self, trainer, pl_module, task):
            super().on_task_step(trainer, pl_module, task)
            if self.step_in_task == 3 and len(self.of("start")) == 1:
                self.restart_task()

    restarts, other = Restarts(), Other()
    fit(restarts, other)
    assert restarts.of("start") == [("start", 0, 0), ("start", 0, 3)]
    assert other.of("start") == [("start", 0, 0)]
    assert restarts.of("step") == other.of("step")


@pytest.mark.parametrize("order", [1, -1])
def test_an_early_stop_ends_the_task_for_every_callback_and_says_that_it_was_early(order):
    class Stops(Plain):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 2

    recall, diary = RecallCallback(every=1.0), Diary()
    with pytest.warns(UserWarning, match="the fit stopped early, so the merge at its task's end"):
        fit(*[diary, recall][::order], model=Stops(), max_epochs=2, min_epochs=0)
    assert diary.of("end") == [("end", 0, 3)]
    assert [record["step"] for record in recall.history] == [3]


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 8}], ids=str)
def test_a_trainer_that_fits_again_without_anything_left_to_train_is_refused(limit):
    diary, model = Diary(), Plain()
    trainer = fit(diary, model=model, **limit)
    name = list(limit.items())[-1]
    with pytest.raises(MisconfigurationException, match=f"come to its {name[0]}={name[1]} before"):
        trainer.fit(model, loader(1))
    assert diary.of("start", "end") == [("start", 0, 0), ("end", 0, 8)]


def test_a_fit_without_data_is_no_task_and_refused():
    diary, model = Diary(), Plain()
    fit(diary, model=model)
    with pytest.raises(
        MisconfigurationException, match="no training batch, so nothing was trained"
    ):
        quiet_trainer(diary).fit(model, DataLoader([]))
    fit(diary, model=model, task=1)
    assert [task for _, task, _ in diary.of("end")] == [0, 1]


def test_a_task_without_data_in_the_midst_of_a_stream_is_refused_by_name():
    class Empty(TaskStream):
        task_names = ["red", "blue", "green"]

        def train_dataset(self, task):
            return task_data(task, 0 if task == 1 else 16)

        def val_dataset(self, task):
            return task_data(task, 16)

    with pytest.raises(MisconfigurationException, match="the task 'blue' has no training batch"):
        quiet_trainer(Diary(), max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(
            Plain(), datamodule=Empty()
        )


@pytest.mark.parametrize("limit", [{"limit_train_batches": 0}, {"max_epochs": 0}], ids=str)
def test_a_fit_that_is_meant_to_train_nothing_trains_nothing(limit):
    diary = Diary()
    fit(diary, **limit)
    assert diary.of("start") == []


def test_task_epochs_of_one_trainers_callback_are_none_of_the_next_trainers():
    shared = Diary()
    quiet_trainer(shared, Other(1), max_epochs=2).fit(Plain(), loader(0))
    shared.events.clear()
    quiet_trainer(shared, max_epochs=2).fit(Plain(), loader(0))
    assert shared.task_epochs is None
    assert shared.of("start", "end") == [("start", 2, 0), ("end", 2, 16)]


def test_a_task_that_is_left_in_the_midst_is_said():
    class Leaves(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 and self.current_epoch == 0 else None

    diary = Diary(task_epochs=1)
    with pytest.warns(UserWarning, match="'task 0' was left before its last batch, after 3 steps"):
        fit(diary, model=Leaves(), max_epochs=2)
    assert diary.of("start", "end") == [("start", 0, 0), ("start", 1, 3), ("end", 1, 11)]


def test_callbacks_can_be_copied_and_pickled_after_a_fit():
    diary = Diary()
    fit(diary)
    for copied in (copy.deepcopy(diary), pickle.loads(pickle.dumps(diary))):
        fit(copied)
        assert copied.clock.visits == [0, 1]


# Checkpoints.


def test_a_checkpoint_of_an_epochs_start_comes_before_the_tasks(tmp_path):
    class Saves(Plain):
        def on_train_epoch_start(self):
            if not resumed:
                self.trainer.save_checkpoint(tmp_path / f"{self.current_epoch}.ckpt")

    resumed = False
    fit(Diary(task_epochs=1), model=Saves(), max_epochs=2)
    resumed, diary = True, Diary(task_epochs=1)
    fit(diary, model=Saves(), checkpoint=tmp_path / "1.ckpt", max_epochs=2)
    assert diary.of("start") == [("start", 1, 8)]


def saved(folder, *callbacks, step=3):
    saver = ModelCheckpoint(folder, f"{step}", every_n_train_steps=step, save_top_k=1)
    fit(*callbacks, saver, enable_checkpointing=True)
    return torch.load(folder / f"{step}.ckpt", weights_only=True)


def write(checkpoint, path):
    torch.save(checkpoint, path)
    return path


def test_every_callbacks_state_holds_the_clocks(tmp_path):
    states = saved(tmp_path, Diary(), Other(), step=6)["callbacks"]
    assert states["Diary"] == states["Other"]
    assert states["Diary"].keys() == KEYS
    assert states["Diary"]["step_in_task"] == 6


def test_a_resume_goes_on_in_the_task_for_all_callbacks(tmp_path):
    saved(tmp_path, Diary(), Other(), step=6)
    diary, other = Diary(), Other()
    fit(diary, other, checkpoint=tmp_path / "6.ckpt")
    assert diary.of("start", "step", "end") == other.of("start", "step", "end")
    assert diary.of("start", "step", "end") == [("step", 0, 7), ("step", 0, 8), ("end", 0, 8)]


def test_a_callback_that_the_checkpoint_does_not_know_starts_the_task_where_it_is(tmp_path):
    saved(tmp_path, Diary(), step=6)
    diary, new = Diary(), Other()
    fit(new, diary, checkpoint=tmp_path / "6.ckpt")
    assert diary.of("start") == []
    assert new.of("start", "step") == [("start", 0, 6), ("step", 0, 7), ("step", 0, 8)]


@pytest.mark.parametrize("behind", ["Diary", "Other"])
def test_of_a_checkpoints_clocks_the_one_that_has_counted_furthest_is_taken(behind, tmp_path):
    checkpoint = saved(tmp_path, Diary(), Other(), step=6)
    for name, state in checkpoint["callbacks"].items():
        if name in ("Diary", "Other"):
            state["visits"] = [0, 1] if name == behind else [0, 1, 2]
    path = write(checkpoint, tmp_path / "apart.ckpt")
    diary = Diary()
    fit(diary, Other(), checkpoint=path)
    assert diary.of("end") == [("end", 2, 8)]


def test_of_two_states_that_a_person_loads_the_second_counts():
    diary = Diary()
    early, late = at(1).state_dict(), at(2).state_dict()
    diary.load_state_dict(late)
    diary.load_state_dict(early)
    assert diary.task == 1


def test_a_resume_after_other_fits_of_the_same_callbacks_takes_the_checkpoints_time(tmp_path):
    saved(tmp_path, Diary(), step=6)
    diary = Diary()
    for _ in range(3):
        fit(diary)
    trainer = fit(diary, checkpoint=tmp_path / "6.ckpt")
    assert diary.of("end")[-1] == ("end", 0, 8)
    assert diary.steps_trained(trainer) == 8


def test_the_tuner_leaves_the_clock_as_it_was(tmp_path):
    from lightning.pytorch.tuner import Tuner

    diary, model = Diary(), Plain()
    trainer = quiet_trainer(diary, default_root_dir=tmp_path)
    Tuner(trainer).lr_find(model, loader(0), num_training=4)
    trainer.fit(model, loader(0))
    assert diary.of("start", "end") == [("start", 0, 0), ("end", 0, 8)]


def test_a_state_that_is_loaded_within_a_fit_is_no_resume():
    class Loads(Diary):
        def on_train_epoch_start(self, trainer, pl_module):
            self.load_state_dict(self.state_dict())
            super().on_train_epoch_start(trainer, pl_module)

    loads, other = Loads(), Other()
    fit(loads, other, max_epochs=2)
    assert not loads.clock.resumed
    assert loads.events == other.events


def test_a_stream_that_is_run_again_starts_from_its_first_task():
    diary, pairs = Diary(), [(task_data(task), task_data(task, 16)) for task in range(2)]
    for _ in range(2):
        trainer = quiet_trainer(diary, max_epochs=2, reload_dataloaders_every_n_epochs=1)
        trainer.fit(Plain(), datamodule=TaskStream.from_datasets(pairs, batch_size=8))
    assert [task for _, task, _ in diary.of("start")] == [0, 1, 0, 1]
    assert diary.steps_trained(trainer) == 16
