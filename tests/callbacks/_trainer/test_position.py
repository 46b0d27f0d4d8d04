"""Resuming with other settings: what the position means is followed, or refused by name."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback, TaskStream
from recall_lightning.merging.rules import Uniform
from tests.support.resumed_runs import savers
from tests.support.training import Plain, loader, quiet_trainer, task_data


def stream(epochs=2, batch_size=8, names=("a", "b"), **kwargs):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(len(names))]
    return TaskStream.from_datasets(
        pairs, names, epochs_per_task=epochs, batch_size=batch_size, **kwargs
    )


def fit(*callbacks, tasks=None, checkpoint=None, module=None, data=None, **kwargs):
    """Train a stream, or one loader; 8 batches an epoch, 2 epochs a task."""
    torch.manual_seed(0)
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    epochs = {"max_epochs": 4 if tasks is None else tasks.total_epochs}
    if tasks is not None:
        epochs["reload_dataloaders_every_n_epochs"] = 1
    trainer = quiet_trainer(*callbacks, enable_checkpointing=saves, **(epochs | kwargs))
    module = module or Plain()
    data = {"datamodule": tasks} if tasks is not None else {"train_dataloaders": data or loader(0)}
    trainer.fit(module, **data, ckpt_path=checkpoint)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of every step of a stream, and of one loader with task_epochs=2."""
    folder = tmp_path_factory.mktemp("saved")
    for name, given in (("stream", {"tasks": stream()}), ("loader", {})):
        every = ModelCheckpoint(
            folder / name, "{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
        )
        fit(recall(None if given else 2), every, **given)
    return folder


def recall(task_epochs=None, **kwargs):
    return RecallCallback(0.25, rule=Uniform(0.2), task_epochs=task_epochs, **kwargs)


@pytest.mark.parametrize(
    ("step", "settings", "said"),
    [
        (
            3,
            {"batch_size": 4},
            r"after 3 batches of epoch 0 .*batches 16 for 8, batch_size 4 for 8",
        ),
        (19, {"batch_size": 16}, "after 3 batches of epoch 2 .*batch_size 16 for 8"),
        (3, {"seed": 1}, "after 3 batches of epoch 0 .*seed"),
        (3, {"drop_last": True, "batch_size": 9}, "after 3 batches"),
        (3, {"joint": True}, "after 3 batches of epoch 0 .*dataset 'Subset' for 'TensorDataset'"),
        (19, {"epochs": 3}, "epoch 2 .* was of task 1 when .* and would now be of task 0"),
        (16, {"epochs": 3}, "the task 'a' had ended after epoch 1 .* and would now go on there"),
        (8, {"epochs": [1, 2]}, "the task 'a' was to go on after epoch 0 .* have ended, unmerged"),
        (19, {"names": ("b", "a")}, "task 0 .* was 'a' .* and is now 'b'"),
        (19, {"names": ("a", "c")}, "task 1 .* was 'b' .* and is now 'c'"),
        (24, {"names": ("a",)}, "epoch 2 .* was of task 1 .* and would now be of task 0"),
    ],
)
def test_a_stream_in_which_the_position_means_nothing_is_refused(step, settings, said, saved):
    model = Plain()
    with pytest.raises(MisconfigurationException, match=said):
        fit(
            recall(),
            tasks=stream(**settings),
            checkpoint=saved / "stream" / f"step={step}.ckpt",
            module=model,
            max_epochs=6,
        )


@pytest.mark.parametrize(
    ("step", "given", "said"),
    [
        (3, {"data": loader(0, batch_size=4)}, "batches an epoch 16 for 8, batch size 4 for 8"),
        (3, {"limit_train_batches": 6}, "batches an epoch 6 for 8"),
        (3, {"data": loader(0, samples=32)}, "batches an epoch 4 for 8"),
        (3, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2 was 1 .* after 3 batches"),
    ],
)
def test_a_loader_in_which_the_position_means_nothing_is_refused(step, given, said, saved):
    with pytest.raises(MisconfigurationException, match=said):
        fit(recall(2), checkpoint=saved / "loader" / f"step={step}.ckpt", **given)


@pytest.mark.parametrize(
    ("step", "task_epochs", "said"),
    [
        (19, 3, "epoch 2 .* was of task 1"),
        (19, None, "epochs told the task when .* and now every fit is one"),
        (16, 4, "the task 'task 0' had ended after epoch 1"),
        (8, 1, "the task 'task 0' was to go on after epoch 0"),
    ],
)
def test_other_task_epochs_are_refused_where_trained_epochs_change(step, task_epochs, said, saved):
    with pytest.raises(MisconfigurationException, match=said):
        fit(recall(task_epochs), checkpoint=saved / "loader" / f"step={step}.ckpt")


def merges(callback, task):
    return [record["step"] for record in callback.history if record["task"] == task]


@pytest.mark.parametrize(
    ("step", "settings", "steps"),
    [
        (3, {"epochs": 3}, [6, 12, 18, 24]),  # a quarter of 24, not of 16
        (8, {"epochs": [4, 1]}, [4, 8, 16, 24, 32]),
        (12, {"epochs": [3, 2]}, [4, 8, 12, 18, 24]),
        (8, {"batch_size": 4}, [4, 8, 12, 18, 24]),  # of 8 + 16
        (8, {"batch_size": 16}, [4, 8, 9, 12]),  # of 8 + 4
        (3, {"names": ("a", "b", "c")}, [4, 8, 12, 16]),
    ],
)
def test_another_length_of_the_task_is_followed(step, settings, steps, saved):
    callback, tasks = recall(), stream(**settings)
    fit(callback, tasks=tasks, checkpoint=saved / "stream" / f"step={step}.ckpt")
    assert merges(callback, 0) == steps
    assert len(merges(callback, 1)) == 4


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"max_steps": 12}, [4, 6, 9, 12]),
        ({"max_epochs": 1}, [4, 6, 8]),
        ({"accumulate_grad_batches": 2}, [4, 5, 8, 10]),  # of 4 + 6
    ],
)
def test_another_end_of_training_is_followed(given, steps, saved):
    callback = recall(2)
    fit(callback, checkpoint=saved / "loader" / "step=4.ckpt", **given)
    assert merges(callback, 0) == steps


def test_a_position_that_is_the_same_is_not_spoken_of(saved, caplog):
    fit(recall(), tasks=stream(), checkpoint=saved / "stream" / "step=16.ckpt")
    fit(recall(), tasks=stream(), checkpoint=saved / "stream" / "step=19.ckpt")
    assert "other settings" not in caplog.text


def test_what_is_followed_is_said(saved, caplog):
    fit(recall(), tasks=stream(epochs=3), checkpoint=saved / "stream" / "step=3.ckpt")
    assert "other settings than its checkpoint's (last epoch 2 for 1)" in caplog.text


def test_the_state_of_another_optimizer_is_refused(saved):
    class WithSGD(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"not of SGD, and lacks its .*momentum"):
        fit(recall(2), checkpoint=saved / "loader" / "step=4.ckpt", module=WithSGD())


def test_a_stream_without_any_callback_refuses_other_batches_too(saved):
    with pytest.raises(MisconfigurationException, match="after 3 batches of epoch 0"):
        fit(tasks=stream(batch_size=4), checkpoint=saved / "stream" / "step=3.ckpt")


def test_a_checkpoint_of_an_earlier_version_has_no_position_and_resumes(saved, tmp_path):
    checkpoint = torch.load(saved / "stream" / "step=19.ckpt")
    del checkpoint["recall_lightning_position"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    callback = recall()
    fit(callback, tasks=stream(), checkpoint=tmp_path / "old.ckpt")
    assert merges(callback, 1) == [20, 24, 28, 32]


@pytest.mark.parametrize("moment", ["batch", "validation", "epoch"])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_an_epoch_that_was_over_stays_so_whatever_its_batches_would_be(
    moment, batch_size, tmp_path
):
    class Epochs(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trained.append(trainer.current_epoch)

    trained = []
    fit(recall(), *savers(tmp_path, [moment]), tasks=stream())
    path = tmp_path / f"step=008-{moment}.ckpt"
    fit(recall(), Epochs(), tasks=stream(batch_size=batch_size), checkpoint=path)
    assert [trained.count(epoch) for epoch in range(4)] == [0, *[64 // batch_size] * 3]
