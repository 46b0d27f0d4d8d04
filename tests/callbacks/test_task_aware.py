import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import ForgettingMonitor, TaskAwareCallback, TaskStream
from tests.support.training import Plain, loader, quiet_trainer, task_data


class Diary(TaskAwareCallback):
    def __init__(self, task_epochs=None):
        super().__init__(task_epochs)
        self.events = []

    def on_task_start(self, trainer, pl_module, task):
        self.events.append(("start", task, trainer.global_step))

    def on_task_step(self, trainer, pl_module, task):
        self.events.append(("step", task, self.step_in_task))

    def on_task_end(self, trainer, pl_module, task):
        self.events.append(("end", task, trainer.global_step))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.events.append(("validated", self.task, trainer.global_step))

    def of(self, *kinds):
        return [event for event in self.events if event[0] in kinds]


def stream(tasks=2, **kwargs):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(tasks)]
    return TaskStream.from_datasets(pairs, batch_size=8, **kwargs)


def fit_stream(diary, data, **kwargs):
    trainer = quiet_trainer(
        diary, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1, **kwargs
    )
    trainer.fit(Plain(), datamodule=data)
    return trainer


def test_a_stream_tells_its_tasks_and_a_task_ends_before_its_last_validation():
    diary = Diary()
    fit_stream(diary, stream(epochs_per_task=[1, 2]))
    assert diary.of("start", "end", "validated") == [
        ("start", 0, 0), ("end", 0, 8), ("validated", 0, 8),
        ("start", 1, 8), ("validated", 1, 16), ("end", 1, 24), ("validated", 1, 24),
    ]  # fmt: skip
    assert diary.of("step")[-1] == ("step", 1, 16)
    assert diary.task_steps == 16


@pytest.mark.parametrize("task_epochs", [2, [0, 2]])
def test_task_epochs_divide_one_fit(task_epochs):
    diary = Diary(task_epochs)
    quiet_trainer(diary, max_epochs=4).fit(Plain(), loader(0))
    assert diary.of("start", "end") == [
        ("start", 0, 0), ("end", 0, 16), ("start", 1, 16), ("end", 1, 32)
    ]  # fmt: skip


def test_otherwise_every_fit_is_a_task_with_one_trainer_or_several():
    diary, model = Diary(), Plain()
    trainer = quiet_trainer(diary)
    trainer.fit(model, loader(0))
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, loader(1))
    quiet_trainer(diary).fit(model, loader(2))
    assert diary.of("start", "end") == [
        ("start", 0, 0), ("end", 0, 8), ("start", 1, 8), ("end", 1, 16), ("start", 2, 0),
        ("end", 2, 8),
    ]  # fmt: skip


def test_steps_are_optimizer_steps_under_gradient_accumulation():
    diary = Diary()
    quiet_trainer(diary, accumulate_grad_batches=3).fit(Plain(), loader(0))
    assert diary.of("step") == [("step", 0, 1), ("step", 0, 2), ("step", 0, 3)]
    assert diary.task_steps == 3


def test_a_task_starts_after_the_modules_own_start_of_the_epoch_which_knows_its_task():
    class Hooks(Plain):
        def on_train_epoch_start(self):
            diary.events.append(("hook", diary.task, self.trainer.global_step))

    diary = Diary(1)
    quiet_trainer(diary, max_epochs=2).fit(Hooks(), loader(0))
    assert diary.of("hook", "start") == [
        ("hook", 0, 0), ("start", 0, 0), ("hook", 1, 8), ("start", 1, 8)
    ]  # fmt: skip


class TwoOptimizers(Plain):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD([p], lr=0.1) for p in self.net[0].parameters()]


def test_manual_optimization_with_several_optimizers_counts_one_step_a_batch():
    diary = Diary()
    quiet_trainer(diary).fit(TwoOptimizers(), loader(0))
    assert diary.of("step")[-1] == ("step", 0, 8)


def test_a_limit_of_steps_is_the_tasks_length_and_end():
    diary = Diary()
    quiet_trainer(diary, max_steps=11, max_epochs=-1).fit(Plain(), loader(0))
    assert diary.task_steps == 11
    assert diary.of("end") == [("end", 0, 11)]


def test_early_stopping_ends_the_task_of_a_fit_once():
    diary = Diary()
    stop = EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    quiet_trainer(diary, stop, max_epochs=5).fit(Plain(), loader(0), loader(0))
    assert diary.of("end") == [("end", 0, 8)]


def test_a_stream_that_is_cut_off_does_not_end_its_task():
    diary = Diary()
    with pytest.warns(UserWarning, match="stopped after 4 steps of the task 'task 0'"):
        fit_stream(diary, stream(), max_steps=4)
    assert diary.of("end") == []


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_stream_goes_on_in_its_task(tmp_path, stop_after):
    data = stream(epochs_per_task=2)

    class Stop(Diary):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch + 1 == stop_after:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                trainer.should_stop = True

    first, second = Stop(), Stop()
    fit_stream(first, data)
    trainer = quiet_trainer(second, max_epochs=4, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Plain(), datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert [event for event in second.of("start", "end") if event[0] == "end"][-1] == ("end", 1, 32)
    assert ("start", 0, 0) not in second.events
    assert second.of("step")[-1] == ("step", 1, 16)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_what_is_said_in_arrays_makes_checkpoints_that_can_be_gone_on_with(array, tmp_path):
    def fit(data=None, task_epochs=None, **kwargs):
        monitor = ForgettingMonitor("val/acc", task_epochs=task_epochs)
        trainer = quiet_trainer(monitor, max_epochs=2, reload_dataloaders_every_n_epochs=1)
        loaders = [] if data else [loader(0), [loader(0, 16), loader(1, 16)]]
        trainer.fit(Plain(), *loaders, datamodule=data, **kwargs)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return monitor

    for given in (
        {"data": stream(order=array([1, 0]), names=list(np.array(["a", "b"])))},
        {"task_epochs": list(array([0, 1]))},
    ):
        whole, resumed = fit(**given), fit(**given, ckpt_path=tmp_path / "end.ckpt")
        assert resumed.matrix == whole.matrix


def test_the_tasks_name_is_in_the_progress_bar(capsys):
    fit_stream(Diary(), stream(names=["red", "blue"]), enable_progress_bar=True)
    shown = capsys.readouterr()
    assert "blue" in shown.out + shown.err


def test_callbacks_agree_on_task_epochs():
    class Other(Diary):
        pass

    told, untold = Diary(2), Other()
    quiet_trainer(told, untold, max_epochs=4).fit(Plain(), loader(0))
    assert untold.of("start") == told.of("start") != []
    with pytest.raises(MisconfigurationException, match=r"different task_epochs: \[2, 3\]"):
        quiet_trainer(Diary(2), Other(3)).fit(Plain(), loader(0))


def test_an_interrupted_fit_starts_its_task_anew_with_another_trainer():
    class Fails(Diary):
        def on_task_step(self, trainer, pl_module, task):
            super().on_task_step(trainer, pl_module, task)
            if len(self.of("step")) == 3:
                raise RuntimeError("interrupted")

    diary = Fails()
    with pytest.raises(RuntimeError, match="interrupted"):
        quiet_trainer(diary).fit(Plain(), loader(0))
    quiet_trainer(diary).fit(Plain(), loader(0))
    assert diary.of("start", "end") == [("start", 0, 0), ("start", 0, 0), ("end", 0, 8)]
    assert diary.of("step")[3] == ("step", 0, 1)


def test_a_task_that_could_not_start_is_started_again():
    class Refuses(Diary):
        def on_task_start(self, trainer, pl_module, task):
            super().on_task_start(trainer, pl_module, task)
            if len(self.of("start")) == 1:
                raise RuntimeError("not yet")

    diary = Refuses()
    with pytest.raises(RuntimeError, match="not yet"):
        quiet_trainer(diary).fit(Plain(), loader(0))
    quiet_trainer(diary).fit(Plain(), loader(0))
    assert len(diary.of("start")) == 2


class StepsEachFourBatches(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 4 == 3:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_the_length_of_a_task_follows_a_module_that_steps_as_it_likes():
    diary = Diary()
    quiet_trainer(diary, max_epochs=2).fit(StepsEachFourBatches(), loader(0, samples=256))
    assert diary.step_in_task == diary.task_steps == 16


def test_steps_go_on_from_trainer_to_trainer():
    diary, model, steps = Diary(), Plain(), []
    for task in range(3):
        trainer = quiet_trainer(diary)
        trainer.fit(model, loader(task))
        steps.append(diary.steps_trained(trainer))
    assert steps == [8, 16, 24]


def test_a_layer_that_has_no_shape_yet_is_refused_by_its_name():
    with pytest.raises(MisconfigurationException, match=r"net\.0\.bias is not known yet"):
        quiet_trainer(ForgettingMonitor("val/acc")).fit(
            Plain(nn.Sequential(nn.LazyLinear(2))), loader(0)
        )
