import json

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import ForgettingMonitor, RecallCallback, TaskStream, metrics
from tests.support.training import Plain, loader, quiet_trainer, task_data
from tests.support.wandb_records import summary_of


def stream(tasks=3, **kwargs):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(tasks)]
    return TaskStream.from_datasets(pairs, batch_size=8, **kwargs)


def fit_stream(*callbacks, data=None, validate=True, **kwargs):
    data = data or stream()
    trainer = quiet_trainer(
        *callbacks, max_epochs=data.total_epochs, reload_dataloaders_every_n_epochs=1, **kwargs
    )
    model = Plain()
    if validate:
        trainer.validate(model, data, verbose=False)
    trainer.fit(model, datamodule=data)
    return model


def accuracy(model, task):
    inputs, labels = task_data(task, 16).tensors
    with torch.no_grad():
        return float((model.net(inputs).argmax(1) == labels).float().mean())


def test_the_matrix_holds_the_score_on_every_task_after_every_task():
    monitor = ForgettingMonitor("val/acc")
    model = fit_stream(monitor)
    assert [len(row) for row in monitor.matrix] == [3, 3, 3]
    assert monitor.matrix[-1] == pytest.approx([accuracy(model, task) for task in range(3)])
    assert len(monitor.record.before) == 3


def test_rows_are_measured_after_the_merge_at_the_tasks_end():
    monitor = ForgettingMonitor("val/acc")
    recall = RecallCallback(every=1.0)
    model = fit_stream(recall, monitor)
    assert monitor.matrix[-1] == pytest.approx([accuracy(model, task) for task in range(3)])


def test_one_fit_a_task_fills_the_same_matrix():
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    validation = [loader(task, 16, shuffle=False) for task in range(3)]
    for task in range(3):
        quiet_trainer(monitor).fit(model, loader(task), validation)
    assert [len(row) for row in monitor.matrix] == [3, 3, 3]
    assert monitor.matrix[-1] == pytest.approx([accuracy(model, task) for task in range(3)])


def test_a_single_validation_loader_is_read_under_its_plain_name():
    monitor = ForgettingMonitor("val/acc")
    quiet_trainer(monitor).fit(Plain(), loader(0), loader(0, 16, shuffle=False))
    assert len(monitor.matrix[0]) == 1


def test_a_growing_list_of_loaders_does_not_mistake_the_old_name_for_a_score():
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    trainer = quiet_trainer(monitor)
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    trainer.fit(model, loader(0), validation[:1])
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, loader(1), validation)
    assert monitor.matrix[1] == pytest.approx([accuracy(model, task) for task in range(2)])


def test_the_summary_is_the_metrics_of_the_matrix():
    monitor = ForgettingMonitor("val/acc")
    fit_stream(monitor)
    summary = monitor.summary()
    assert summary["forgetting"] == float(metrics.forgetting(monitor.matrix))
    assert summary["forward_transfer"] == float(
        metrics.forward_transfer(monitor.matrix, monitor.record.before)
    )


def test_files_of_a_run(tmp_path):
    monitor = ForgettingMonitor("val/acc", folder=str(tmp_path))
    fit_stream(RecallCallback(every=0.25), monitor)
    content = json.loads((tmp_path / "task_matrix.json").read_text())
    assert content["matrix"] == monitor.matrix
    assert content["forgetting_variant"] == "since_trained"
    assert content["seconds"] > 0
    for name in ("task_matrix.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))


def test_without_a_logger_the_terminal_shows_it_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    fit_stream(ForgettingMonitor("val/acc"))
    shown = capsys.readouterr().out
    assert "after 'task 1': average" in shown
    assert "after task 2" in shown
    assert list(tmp_path.iterdir()) == []


def test_csv_gets_every_score_against_the_task(tmp_path):
    fit_stream(ForgettingMonitor("val/acc"), logger=CSVLogger(tmp_path, name="run"))
    folder = tmp_path / "run" / "version_0"
    header = (folder / "metrics.csv").read_text().split("\n")[0].split(",")
    names = ["task", "average", "backward_transfer", "forward_transfer", "forgetting", "plasticity"]
    for name in [*names, "task 0", "task 2"]:
        assert f"continual/{name}" in header
    assert (folder / "task_matrix.json").exists()


def test_tensorboard_gets_scalars_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recall = RecallCallback(every=0.25)
    logger = TensorBoardLogger(tmp_path, name="run")
    fit_stream(recall, ForgettingMonitor("val/acc"), logger=logger)
    events = EventAccumulator(logger.log_dir).Reload().Tags()
    assert {"continual/forgetting", "recall/drift/net.0"} <= set(events["scalars"])
    assert {"continual/matrix_image", "recall/coefficients/task 1"} <= set(events["images"])


def test_wandb_gets_scalars_the_matrix_as_table_and_image_and_the_heatmaps(tmp_path):
    logger = WandbLogger(project="p", save_dir=tmp_path, offline=True)
    recall = RecallCallback(every=0.25)
    fit_stream(recall, ForgettingMonitor("val/acc"), logger=logger)
    logger.experiment.finish()
    summary = summary_of(tmp_path)
    for key in ("continual/forgetting", "continual/task", "recall/coefficient/net.0"):
        assert key in summary
    media = {
        path.name.rpartition("_")[0] for path in tmp_path.rglob("media/**/*") if path.is_file()
    }
    written = " ".join(map(str, tmp_path.rglob("media/**/*")))
    assert "matrix_image" in written
    assert "coefficients" in written
    assert written.count("recall/front/") >= 3
    assert written.count("recall/front_table/") >= 3
    assert any(path.suffix == ".json" for path in tmp_path.rglob("media/table/**/*")), media
    assert list(tmp_path.rglob("task_matrix.json"))


def test_a_resumed_run_keeps_its_rows(tmp_path):
    class Checkpoint(ForgettingMonitor):
        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            if trainer.state.fn == "fit":
                trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole = Checkpoint("val/acc")
    fit_stream(whole)
    resumed = Checkpoint("val/acc")
    trainer = quiet_trainer(resumed, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Plain(), datamodule=stream(), ckpt_path=tmp_path / "1.ckpt")
    assert resumed.matrix == whole.matrix
    assert resumed.record.before == whole.record.before


def test_a_metric_that_is_not_logged_is_named_with_those_that_are():
    with pytest.raises(
        MisconfigurationException,
        match=r"monitor='val/f1' was not logged for validation dataloader 0; logged were val/acc$",
    ):
        fit_stream(ForgettingMonitor("val/f1"))


def test_too_few_validation_loaders_for_a_stream():
    class OneLoader(type(stream())):
        def val_dataloader(self):
            return super().val_dataloader()[:1]

    data = stream()
    data.__class__ = OneLoader
    with pytest.raises(
        MisconfigurationException, match="dataloader for each of the tasks, 3 in all"
    ):
        fit_stream(ForgettingMonitor("val/acc"), data=data, validate=False)


class Stepping(Callback):
    """Nothing is to be trained where the dataloaders are refused."""

    def on_train_batch_end(self, *_):
        raise AssertionError("a batch was trained")


@pytest.mark.parametrize(
    ("of_callback", "of_trainer"),
    [
        ({"task_epochs": 1}, {"max_epochs": 3}),
        ({"task_epochs": [0, 1, 2]}, {"max_epochs": 3}),
        ({"task_epochs": 1}, {"max_epochs": -1, "max_steps": 20}),  # of 8 an epoch
        ({"task_epochs": 1}, {"max_epochs": 3, "check_val_every_n_epoch": 2}),
    ],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_too_few_validation_loaders_are_refused_before_the_first_step(
    of_callback, of_trainer, sanity
):
    monitor = ForgettingMonitor("val/acc", **of_callback)
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    with pytest.raises(MisconfigurationException, match=r"dataloader.*there are 2"):
        quiet_trainer(
            Stepping(), RecallCallback(), monitor, num_sanity_val_steps=sanity, **of_trainer
        ).fit(Plain(), loader(0), validation)


def test_so_they_are_where_only_a_datamodule_knows_its_tasks():
    class Tasks(LightningDataModule):
        def task_at(self, epoch):
            return epoch // 2

        def train_dataloader(self):
            return loader(self.task_at(self.trainer.current_epoch))

        def val_dataloader(self):
            return [loader(task, 16, shuffle=False) for task in range(2)]

    trainer = quiet_trainer(Stepping(), ForgettingMonitor("val/acc"), max_epochs=6)
    with pytest.raises(MisconfigurationException, match=r"task 2 .*needs 3 .* there are 2"):
        trainer.fit(Plain(), datamodule=Tasks())
    monitor = ForgettingMonitor("val/acc")
    quiet_trainer(monitor, max_epochs=4, reload_dataloaders_every_n_epochs=1).fit(
        Plain(), datamodule=Tasks()
    )
    assert len(monitor.matrix) == 2


def test_a_validation_loader_without_a_batch_is_refused_before_the_first_step():
    empty = DataLoader(TensorDataset(torch.zeros(0, 8), torch.zeros(0).long()))
    validation = [loader(0, 16, shuffle=False), empty]
    with pytest.raises(MisconfigurationException, match="validation dataloader 1 has no batches"):
        quiet_trainer(Stepping(), ForgettingMonitor("val/acc")).fit(Plain(), loader(0), validation)


def test_too_few_validation_loaders_for_the_second_fit():
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    quiet_trainer(monitor).fit(model, loader(0), loader(0, shuffle=False))
    with pytest.raises(MisconfigurationException, match=r"task 1 \(counted from 0\) needs 2"):
        quiet_trainer(Stepping(), monitor).fit(model, loader(1), loader(1, shuffle=False))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"check_val_every_n_epoch": 2}, "ends with epoch 0.*check_val_every_n_epoch=2"),
        (
            {"val_check_interval": 3},
            "8 batches .*every 3 .*: .* or to 3 with limit_train_batches=6",
        ),
    ],
)
def test_a_validation_that_misses_a_tasks_end_is_refused_early(kwargs, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit_stream(ForgettingMonitor("val/acc"), **kwargs)


def test_an_early_stop_takes_the_last_validation_for_the_row():
    stop = EarlyStopping("val/acc/dataloader_idx_0", mode="max", stopping_threshold=0.0)
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    monitor = ForgettingMonitor("val/acc")
    with pytest.warns(UserWarning, match="its row of the matrix is the last one before it"):
        quiet_trainer(monitor, stop, max_epochs=5).fit(Plain(), loader(0), validation)
    assert len(monitor.matrix) == 1


def stopped_early(monitor, model, validation, task=0):
    """Fit a task that ends behind its last validation, at other weights than were validated."""
    stop = EarlyStopping(f"val/acc/dataloader_idx_{task}", mode="max", stopping_threshold=0.0)
    trainer = quiet_trainer(monitor, stop, max_epochs=5)
    trainer.fit(model, loader(task), validation)
    assert monitor.record.last_is_early
    with torch.no_grad():
        model.net[-1].weight.neg_()
    return trainer


def test_a_validation_after_an_early_stop_measures_the_row_again():
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    trainer = stopped_early(monitor, model, validation)
    trainer.validate(Plain(), validation, verbose=False)  # another model's scores are no row
    assert monitor.record.last_is_early
    measured = trainer.validate(model, validation, verbose=False)
    scores = [own[f"val/acc/dataloader_idx_{n}"] for n, own in enumerate(measured)]
    assert monitor.matrix == [scores]
    assert not monitor.record.last_is_early
    trainer.validate(model, validation, verbose=False)
    assert len(monitor.record.measurements) == 2


@pytest.mark.parametrize(
    ("chosen", "said"), [([0], "1 dataloaders"), ([1, 0], "another order"), ([0, 1, 1], "3 data")]
)
def test_a_validation_that_is_no_row_leaves_the_one_of_an_early_stop(chosen, said):
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    trainer = stopped_early(monitor, model, validation)
    before = [list(row) for row in monitor.matrix]
    with pytest.warns(UserWarning, match=f"{said}.* is no row .* pass all 2 in their order"):
        trainer.validate(model, [validation[place] for place in chosen], verbose=False)
    assert monitor.matrix == before
    trainer.validate(model, validation, verbose=False)
    assert not monitor.record.last_is_early
    quiet_trainer(monitor).fit(model, loader(1), validation)


def test_a_row_is_measured_again_at_its_fits_end_whichever_trainer_does_it():
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    monitor, model = ForgettingMonitor("val/acc"), Plain()
    steps = stopped_early(monitor, model, validation).global_step
    quiet_trainer(monitor).validate(model, validation, verbose=False)
    assert monitor.record.measurements[-1]["step"] == steps


def test_a_second_run_of_a_stream_starts_a_new_matrix():
    monitor = ForgettingMonitor("val/acc")
    fit_stream(monitor)
    model = fit_stream(monitor, validate=False)
    assert len(monitor.matrix) == 3
    assert monitor.matrix[-1] == pytest.approx([accuracy(model, task) for task in range(3)])
    assert [step for step, _ in monitor.record.boundaries] == [0, 8, 16]


def test_a_validation_of_other_loaders_after_training_is_none_of_its_business():
    monitor = ForgettingMonitor("val/acc")
    model = fit_stream(monitor)
    before = [list(row) for row in monitor.matrix]
    quiet_trainer(monitor).validate(model, loader(0, shuffle=False), verbose=False)
    assert monitor.matrix == before


def test_a_module_that_names_its_loaders_itself():
    class Names(Plain):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log(f"val_{dataloader_idx}/acc", 0.5 + dataloader_idx, add_dataloader_idx=False)

    monitor = ForgettingMonitor("val_{idx}/acc")
    validation = [loader(task, 16, shuffle=False) for task in range(2)]
    quiet_trainer(monitor).fit(Names(), loader(0), validation)
    assert monitor.matrix == [[0.5, 1.5]]


def test_a_task_named_like_a_metric_is_refused():
    with pytest.raises(MisconfigurationException, match="a task is called 'average'"):
        fit_stream(ForgettingMonitor("val/acc"), data=stream(2, names=["average", "b"]))


def test_fast_dev_run_checks_no_loaders():
    monitor = ForgettingMonitor("val/acc", task_epochs=2)
    validation = [loader(task, shuffle=False) for task in range(2)]
    quiet_trainer(monitor, fast_dev_run=True).fit(Plain(), loader(0), validation)
    assert len(monitor.matrix) == 1


@pytest.mark.parametrize("where", ["folder", "logger"])
def test_a_folder_that_is_on_no_disk_is_refused_before_training(where, tmp_path):
    remote = "memory://runs"
    monitor = ForgettingMonitor("val/acc", folder=remote if where == "folder" else None)
    trainer = quiet_trainer(monitor, default_root_dir=remote, logger=where == "logger")
    with pytest.raises(MisconfigurationException, match="local disk, and would to memory:"):
        trainer.fit(Plain(), loader(0), loader(0))


def three(names, epochs=1):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(len(names))]
    return TaskStream.from_datasets(pairs, names, epochs_per_task=epochs, batch_size=16)


def resume(stream, folder, monitor="val/acc", checkpoint=None):
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    callback = ForgettingMonitor(monitor)
    trainer = quiet_trainer(
        callback,
        saver,
        max_epochs=stream.total_epochs,
        enable_checkpointing=True,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(Plain(), datamodule=stream, ckpt_path=checkpoint)
    return callback


@pytest.mark.parametrize(
    ("names", "monitor", "said"),
    [
        (
            "abc",
            "val/loss",
            "monitor='val/loss', and the scores in the checkpoint are of 'val/acc'",
        ),
        ("acb", "val/acc", r"task 1 \(from 0\) was 'b'"),
        ("abd", "val/acc", "ForgettingMonitor: the tasks are a, b, d, and the .* are of a, b, c:"),
        ("ab", "val/acc", "ForgettingMonitor: the tasks are a, b, and"),
    ],
)
def test_scores_of_another_metric_or_other_tasks_are_not_added_to_a_checkpoints(
    names, monitor, said, tmp_path
):
    resume(three("abc"), tmp_path)
    with pytest.raises(MisconfigurationException, match=said):
        resume(three(names), tmp_path, monitor, tmp_path / "step=5.ckpt")


def test_tasks_that_have_come_behind_a_checkpoints_are_scored_from_there_on(tmp_path):
    resume(three("ab"), tmp_path)
    callback = resume(three("abc"), tmp_path, checkpoint=tmp_path / "step=5.ckpt")
    assert [len(row) for row in callback.matrix] == [2, 3, 3]
    assert callback.record.task_names == ["a", "b", "c"]
    assert "forgetting" in callback.summary()


def test_a_monitor_that_goes_on_to_other_tasks_in_another_run_starts_anew():
    callback = ForgettingMonitor("val/acc")
    for names in ("ab", "cd"):
        stream = three(names)
        trainer = quiet_trainer(
            callback, max_epochs=stream.total_epochs, reload_dataloaders_every_n_epochs=1
        )
        trainer.validate(Plain(), datamodule=stream, verbose=False)
        trainer.fit(Plain(), datamodule=stream)
        assert callback.record.task_names == list(names)
        assert len(callback.matrix) == 2
