"""What the Trainer's limits and intervals do to merges and to the task matrix."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner

from recall_lightning import ForgettingMonitor, RecallCallback
from tests.support.resumed_runs import differences, stream
from tests.support.training import Plain, loader, quiet_trainer


def fit(tune=lambda trainer, module, data: None, **options):
    """Train two tasks of two epochs and six steps each; return all that came out."""
    torch.manual_seed(0)
    module, data = Plain(), stream(epochs_per_task=2)
    recall, monitor = RecallCallback(every=3), ForgettingMonitor("val/acc")
    reload = {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 1}
    trainer = quiet_trainer(recall, monitor, **(reload | options))
    tune(trainer, module, data)
    trainer.fit(module, datamodule=data)
    return {
        "merges": [(record["task"], record["step"]) for record in recall.history],
        "coefficients": [record["coefficient"] for record in recall.history],
        "rows": len(monitor.matrix),
        "matrix": monitor.matrix,
        "weights": module.state_dict(),
    }


def merges(*steps_of_tasks):
    return [(task, step) for task, steps in enumerate(steps_of_tasks) for step in steps]


@pytest.mark.parametrize(
    ("options", "expected", "rows"),
    [
        ({}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"num_sanity_val_steps": 2}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"fast_dev_run": True}, merges([1]), 1),
        ({"fast_dev_run": 4}, merges([3, 4]), 1),
        ({"overfit_batches": 2}, merges([3, 4], [7, 8]), 2),
        ({"overfit_batches": 0.5}, merges([3, 6], [9, 12]), 2),
        ({"limit_train_batches": 4}, merges([3, 6, 8], [11, 14, 16]), 2),
        ({"limit_train_batches": 0.5}, merges([3, 6], [9, 12]), 2),
        ({"limit_train_batches": 0}, merges(), 0),
        ({"limit_val_batches": 1}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"limit_val_batches": 0.5}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"val_check_interval": 2}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"check_val_every_n_epoch": 2}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"max_steps": 20}, merges([3, 6, 9, 12], [15, 18, 20]), 1),
        ({"max_time": {"days": 1}}, merges([3, 6, 9, 12], [15, 18, 21, 24]), 2),
        ({"max_time": {"seconds": 0}}, merges([]), 0),
    ],
    ids=str,
)
def test_merges_and_rows_under_each_option(options, expected, rows):
    found = fit(**options)
    assert found["merges"] == expected
    assert found["rows"] == rows


def test_without_validation_the_monitor_says_once_that_it_has_nothing_to_read():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert fit(limit_val_batches=0)["matrix"] == []
    monitors = [str(each.message) for each in said if "ForgettingMonitor" in str(each.message)]
    assert len(monitors) == 1
    assert "limit_val_batches=0" in monitors[0]


def find_learning_rate(trainer, module, data):
    Tuner(trainer).lr_find(module, datamodule=data, num_training=5, update_attr=False)


def scale_batch_size(trainer, module, data):
    kept = data.batch_size
    Tuner(trainer).scale_batch_size(module, datamodule=data, max_trials=2, init_val=4)
    data.batch_size = kept


@pytest.mark.parametrize("tune", [find_learning_rate, scale_batch_size])
def test_the_tuner_leaves_no_trace(tune, tmp_path):
    plain = fit(default_root_dir=tmp_path)
    assert differences(plain, fit(tune, default_root_dir=tmp_path)) == []


def test_a_seed_set_after_tuning_counts(tmp_path):
    def tune_and_seed(trainer, module, data):
        find_learning_rate(trainer, module, data)
        torch.manual_seed(5)

    class Draws(Plain):
        def on_train_start(self):
            drawn.append(torch.rand(1).item())

    drawn = []
    for tune in (lambda *_: torch.manual_seed(5), tune_and_seed):
        trainer = quiet_trainer(
            RecallCallback(),
            max_epochs=4,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=tmp_path,
        )
        data, module = stream(), Draws()
        tune(trainer, module, data)
        trainer.fit(module, datamodule=data)
    assert drawn[0] == drawn[-1]


UNSAVED = "no checkpoint was written after the merge at the end"


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({"every_n_train_steps": 5}, True),
        ({"every_n_train_steps": 6}, False),  # the task's last, behind its merge
        ({}, False),
        ({"every_n_train_steps": 1000, "save_last": True}, False),  # saved as training ends
        ({"every_n_train_steps": 5, "save_weights_only": True}, False),  # which tells no callback
    ],
)
def test_a_last_merge_that_no_checkpoint_holds_is_said(options, warns, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, **options)
    trainer = quiet_trainer(RecallCallback(), checkpoint, enable_checkpointing=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Plain(), loader(0, 48))
    assert any(UNSAVED in str(each.message) for each in said) is warns
