"""RecallCallback in a stream whose tasks nobody announces."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import ConcatDataset, DataLoader

from recall_lightning import (
    DriftSettings,
    ForgettingMonitor,
    MomentSettings,
    RecallCallback,
    TaskStream,
)
from tests.support.callbacks import recall, same, weights_of
from tests.support.resumed_runs import differences, train
from tests.support.training import Plain, loader, quiet_trainer, task_data

STEPS = 60  # of each part of the stream
WATCH = DriftSettings(minimal_steps=20)


def stream(parts=2, batch_size=8):
    """A loader in which another input tells the classes apart from some batch on."""
    data = ConcatDataset([task_data(part, STEPS * batch_size) for part in range(parts)])
    return DataLoader(data, batch_size=batch_size)


def callback(**kwargs):
    given = {"every": 1.0, "merge_first_task": False, "boundaries": WATCH}
    return RecallCallback(**given | kwargs)


def fit(*callbacks, model=None, **kwargs):
    torch.manual_seed(0)
    model = model or Plain()
    trainer = quiet_trainer(*callbacks, **kwargs)
    trainer.fit(model, stream(), [loader(task, 64, shuffle=False) for task in range(2)])
    return model


@pytest.fixture(scope="module")
def one():
    """A callback that has been through a fit with one change."""
    torch.manual_seed(0)
    own, model = callback(), Plain()
    quiet_trainer(own).fit(model, stream())
    return own


def test_the_change_is_noticed_soon_after_it_has_begun(one):
    (change,) = one.changes
    assert STEPS <= change["step"] < STEPS + 12
    assert change["signal"] in ("loss", "representations")


def test_the_task_ends_with_weights_from_before_the_change(one):
    assert one.changes[0]["began"] in range(STEPS - 8, STEPS + 1)


def test_the_second_task_is_merged_at_the_fits_end(one):
    assert [(record["task"], record["step"]) for record in one.history] == [(1, 2 * STEPS)]
    assert (one.task, one.visit, one.task_ended) == (1, 1, True)


def test_what_the_first_task_depended_on_is_measured_on_its_own_batches():
    seen = []

    class Watched(RecallCallback):
        def on_task_end(self, trainer, pl_module, task):
            recent = next(s for s in self._statistics.active if s.name == "recent_batches")
            seen.append([int(batch[0].sum() * 1e3) for batch in recent.batches])
            super().on_task_end(trainer, pl_module, task)

    fit(Watched(every=1.0, merge_first_task=False, boundaries=WATCH))
    of_first = {int(batch[0].sum() * 1e3) for batch in list(stream())[:STEPS]}
    assert len(seen) == 2
    assert len(seen[0]) == MomentSettings().batches
    assert of_first.issuperset(seen[0])


def test_nothing_that_was_trained_is_lost_at_a_change():
    """Where nothing is merged at the boundary, training goes on as if there were none."""
    plain, watched = Plain(), Plain()
    own = callback(end_rule="never", every=10_000)
    for model, callbacks in ((plain, []), (watched, [own])):
        torch.manual_seed(0)
        model.load_state_dict(Plain().state_dict())
        quiet_trainer(*callbacks).fit(model, stream())
    assert len(own.changes) == 1
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(watched.get_parameter(name), weight, atol=1e-4, rtol=1e-4)


def test_a_stream_without_a_change_stays_one_task():
    torch.manual_seed(0)
    own = callback()
    quiet_trainer(own, max_epochs=4).fit(Plain(), loader(0, 480))
    assert own.changes == []
    assert own.visit == 0


def test_others_see_the_datamodules_tasks_and_this_one_sees_changes():
    data = TaskStream.from_datasets(
        [(task_data(task, 480), task_data(task, 64)) for task in range(2)],
        names=["red", "blue"],
        epochs_per_task=2,
        batch_size=16,
    )
    torch.manual_seed(0)
    own, monitor = callback(every=5), ForgettingMonitor("val/acc")
    trainer = quiet_trainer(own, monitor, max_epochs=4, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Plain(), datamodule=data)
    assert [name for _, name in monitor.record.boundaries] == ["red", "blue"]
    assert [step for step, _ in monitor.record.boundaries] == [0, STEPS]
    assert [change["step"] > STEPS for change in own.changes] == [True]
    assert monitor.record.found_boundaries == own.changes
    assert own.task_name(trainer, 1) == "task 1"


def test_a_monitor_notes_what_is_found_and_a_resume_goes_on_from_there(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 * STEPS - 4:
                trainer.save_checkpoint(tmp_path / "late.ckpt")

    monitor, own = ForgettingMonitor("val/acc", folder=str(tmp_path)), callback()
    model = fit(monitor, own, Saves(), val_check_interval=20)
    assert len(own.changes) == 1
    content = json.loads((tmp_path / "task_matrix.json").read_text())
    assert content["found_boundaries"] == monitor.record.found_boundaries == own.changes
    assert len(content["matrix"]) == 1
    alone = ForgettingMonitor("val/acc")  # it is in the monitor's own state
    trainer = quiet_trainer(alone, val_check_interval=20)
    loaders = [loader(task, 64, shuffle=False) for task in range(2)]
    trainer.fit(model, stream(), loaders, ckpt_path=tmp_path / "late.ckpt")
    assert alone.record.found_boundaries == own.changes


def test_without_drift_nothing_says_that_boundaries_were_looked_for():
    monitor = ForgettingMonitor("val/acc")
    fit(RecallCallback(merge_first_task=False), monitor)
    assert monitor.record.found_boundaries is None


def test_gradient_accumulation_counts_batches_and_steps_apart():
    own = callback()
    fit(own, accumulate_grad_batches=2, max_epochs=1)
    assert all(STEPS // 2 <= change["step"] <= STEPS // 2 + 12 for change in own.changes)


def test_a_rule_by_similarity_needs_no_batches_kept():
    own = recall(every=30, merge_first_task=False, boundaries=WATCH)
    fit(own)
    assert len(own.changes) == 1
    assert {record["task"] for record in own.history} == {1}


@pytest.mark.parametrize(("signal", "lr"), [("loss", 1e-2), ("representations", 1e-3)])
def test_either_signal_is_enough(signal, lr):
    own = callback(boundaries=DriftSettings(signals=(signal,), minimal_steps=20))
    torch.manual_seed(0)
    shifted = [task_data(0, STEPS * 8), task_data(1, STEPS * 8)]
    shifted[1].tensors[0].add_(3.0)
    quiet_trainer(own).fit(Plain(lr=lr), DataLoader(ConcatDataset(shifted), batch_size=8))
    assert [change["signal"] for change in own.changes] == [signal]


def test_nothing_is_left_on_the_model():
    model = fit(callback())
    assert not any(child._forward_hooks for child in model.modules())


def test_a_run_that_resumes_anywhere_ends_as_one_that_was_not_interrupted(tmp_path):
    def data():
        both = [task_data(task, 1280) for task in range(2)]
        return TaskStream.from_datasets(both, epochs_per_task=1, batch_size=16, val_fraction=0.2)

    given = {"max_epochs": 2, "default_root_dir": tmp_path}
    saver = ModelCheckpoint(tmp_path, "{step:03d}", every_n_train_steps=6, save_top_k=-1)
    first = callback(every=7)
    whole = train([first, saver], data(), **given)
    assert len(first.changes) == 1
    found = {}
    for path in sorted(tmp_path.glob("*.ckpt")):
        again = callback(every=7)
        found[path.name] = differences(whole, train([again], data(), path, **given))
        found[path.name] += differences(first.changes, again.changes)
    assert len(found) > 15
    assert not any(found.values()), found


def test_a_checkpoint_right_at_the_boundary_holds_what_is_to_be_added(tmp_path):
    class Saves(RecallCallback):
        def on_task_end(self, trainer, pl_module, task):
            super().on_task_end(trainer, pl_module, task)
            if task == 0:
                trainer.save_checkpoint(tmp_path / "boundary.ckpt")

    fit(Saves(every=1.0, merge_first_task=False, boundaries=WATCH))
    state = torch.load(tmp_path / "boundary.ckpt", weights_only=True)["callbacks"]
    (own,) = (value for key, value in state.items() if "Saves" in key)
    assert all(
        bool(torch.any(each != 0)) for each in own["drift"]["weights"]["trained_since"].values()
    )


def test_a_fraction_of_a_task_is_refused_as_nobody_knows_its_length():
    with pytest.raises(MisconfigurationException, match=r"every=0\.25 .* nobody knows how long"):
        callback(every=0.25)


def test_epochs_of_tasks_are_refused_beside_it():
    with pytest.raises(MisconfigurationException, match="task_epochs=2 has no effect"):
        callback(task_epochs=2)


def test_another_word_is_refused():
    with pytest.raises(
        MisconfigurationException, match="boundaries='unknown' is unknown: use 'known' or 'drift'"
    ):
        callback(boundaries="unknown")


@pytest.mark.parametrize(
    "wrong", [{"minimal_steps": 0}, {"signals": ()}, {"signals": ("noise",)}, {"detector": "ddm"}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(MisconfigurationException, match=next(iter(wrong))):
        DriftSettings(**wrong)


def test_a_rollback_is_refused_as_tasks_end_elsewhere():
    monitor = ForgettingMonitor("val/acc", limits={"forgetting": 0.1}, on_limit="rollback")
    with pytest.raises(MisconfigurationException, match="rollback"):
        fit(callback(), monitor)


def test_a_limit_of_the_estimate_is_refused_as_tasks_end_elsewhere():
    monitor = ForgettingMonitor("val/acc", limits={"estimated_forgetting": 0.1})
    with pytest.raises(MisconfigurationException, match="estimated_forgetting"):
        fit(callback(), monitor)


def test_what_was_trained_since_a_change_does_not_come_into_another_fit():
    class Stops(RecallCallback):
        def on_task_end(self, trainer, pl_module, task):
            super().on_task_end(trainer, pl_module, task)
            trainer.should_stop = True

    own = Stops(every=1.0, merge_first_task=False, boundaries=WATCH)
    fit(own)
    assert len(own.changes) == 1
    other = Plain()
    before = weights_of(other)

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.should_stop = True
            assert same(before, weights_of(pl_module))

    with pytest.warns(UserWarning, match="another object"):
        quiet_trainer(own, First()).fit(other, stream())


def test_a_loss_that_is_not_seen_is_told_of():
    class ByHand(Plain):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            super().training_step(batch, batch_idx).backward()  # not self.manual_backward
            optimizer.step()

    with pytest.warns(UserWarning, match=r"no finite loss in 20 steps.*manual_backward"):
        quiet_trainer(callback()).fit(ByHand(), stream())


def test_a_stream_without_an_end_may_be_watched():
    class Enough(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 3

    own = RecallCallback(merge_first_task=False, every=1.0, boundaries=WATCH)
    quiet_trainer(own, Enough(), max_epochs=-1).fit(Plain(), stream())
    assert own.step_in_task >= 3


def test_the_step_where_it_began_is_counted_in_optimizer_steps():
    own = callback()
    fit(own, accumulate_grad_batches=2)
    assert all(change["began"] <= STEPS // 2 for change in own.changes)
