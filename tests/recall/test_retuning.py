"""A task's last merge made again is the merge of a run that had asked for it."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.merging.rules import KfacSubspace, MergeRule, Uniform
from recall_lightning.recall import plasticity
from recall_lightning.recall.front import FrontPoint
from recall_lightning.recall.retuning import retuned
from recall_lightning.recall.settings import SnapshotSettings
from recall_lightning.report.words import lost
from recall_lightning.weights.lightning_checkpoint import read_checkpoint
from tests.support.adapter_runs import KNEW, Adapted, sequences
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain, loader, quiet_trainer

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def trained(folder=None, plasticity=0.8, tasks=2, net=None, **kwargs):
    torch.manual_seed(0)
    model = Plain(net and net())
    given = {"every": 1.0, "keep_live": True, "merge_first_task": False} | kwargs
    callback = RecallCallback(plasticity=plasticity, **given)
    for task in range(tasks):
        trainer = quiet_trainer(callback)
        trainer.fit(model, loader(task))
    if folder is not None:
        trainer.save_checkpoint(folder / "end.ckpt")
    return model, callback


def in_file(folder, share):
    path = folder / "end.ckpt"
    return retuned(read_checkpoint(path), share, folder)


def test_seven_shares_are_the_merges_of_seven_runs_bit_for_bit(tmp_path):
    model, callback = trained(tmp_path)
    for share in SHARES:
        other, own = trained(plasticity=share)
        callback.retune(model, share)
        assert same(weights_of(other), weights_of(model))
        assert same(weights_of(other), in_file(tmp_path, share)["state_dict"])
        assert callback.history[-1]["keep"] == own.history[-1]["keep"]
        assert callback.history[-1]["coefficient"] == own.history[-1]["coefficient"]


def test_the_share_that_the_run_asked_for_is_the_merge_that_was_made(tmp_path):
    model, callback = trained(tmp_path, plasticity=0.8)
    before, record = weights_of(model), callback.history[-1]
    callback.retune(model, 0.8)
    (state,) = in_file(tmp_path, 0.8)["callbacks"].values()
    assert same(before, weights_of(model))
    assert callback.history[-1] == state["history"][-1] == record
    assert record["plasticity"] != 0.8  # as measured


def test_a_share_that_no_merge_leaves_is_said_to_be_that(tmp_path, monkeypatch):
    flat = [FrontPoint(1e-6, 0.9, 0.1), FrontPoint(1.0, 0.9, 0.1), FrontPoint(32.0, 0.5, 0.3)]
    monkeypatch.setattr(plasticity, "measured_front", lambda tried: flat)
    with pytest.warns(UserWarning, match="however little the old counts, no merge leaves that"):
        model, callback = trained(plasticity=0.95)
    with pytest.warns(UserWarning, match="no merge leaves 99 % .*, 89 % is sought instead"):
        callback.retune(model, 0.99)
    callback.retune(model, 0.5)
    callback.retune(model, 0.97)
    assert callback.history[-1]["plasticity"] == pytest.approx(0.89)


def normalised():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def test_running_statistics_are_merged_again_bit_for_bit(tmp_path):
    model, callback = trained(tmp_path, net=normalised)
    before = weights_of(model)
    for share in SHARES[::2]:
        other, _ = trained(plasticity=share, net=normalised)
        callback.retune(model, share)
        assert same(weights_of(other), weights_of(model))
        assert same(weights_of(other), in_file(tmp_path, share)["state_dict"])
        assert not torch.equal(before["net.1.running_var"], model.net[1].running_var)


@pytest.mark.parametrize(
    "rule", [KfacSubspace(new_inputs=2.0), "rbf*importance", "subspace", "importance", "uniform"]
)
def test_every_rule_can_be_made_again_from_a_file(rule, tmp_path):
    rule = Uniform(0.4) if rule == "uniform" else rule
    model, _ = trained(tmp_path, rule=rule, end_rule=None)
    asked, _ = trained(plasticity=0.5, rule=rule, end_rule=None)
    assert same(weights_of(asked), in_file(tmp_path, 0.5)["state_dict"])
    assert not same(weights_of(asked), weights_of(model))


def test_several_snapshots_are_merged_again(tmp_path):
    several = {"rule": "rbf", "snapshots": "all", "merge_first_task": True}
    trained(tmp_path, **several)
    torch.manual_seed(0)
    asked, callback = Plain(), RecallCallback(every=1.0, plasticity=0.8, **several)
    for task, share in enumerate((0.8, 0.5)):
        callback._merge._plasticity.share = share
        quiet_trainer(callback).fit(asked, loader(task))
    assert same(weights_of(asked), in_file(tmp_path, 0.5)["state_dict"])


def test_an_adapter_is_kept_by_default_and_merged_again(tmp_path):
    def run(plasticity, folder=None):
        torch.manual_seed(0)
        model, callback = Adapted(), RecallCallback(prior=KNEW, plasticity=plasticity)
        trainer = quiet_trainer(callback)
        trainer.fit(model, torch.utils.data.DataLoader(sequences(0, 16), batch_size=4))
        if folder is not None:
            trainer.save_checkpoint(folder / "end.ckpt")
        return weights_of(model)

    run(0.9, tmp_path)
    assert same(run(0.4), in_file(tmp_path, 0.4)["state_dict"])


def test_snapshots_in_files_are_found_beside_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    model, callback = (
        Plain(),
        RecallCallback(plasticity=0.8, keep_live=True, snapshots=SnapshotSettings(to="file")),
    )
    trainer = Trainer(
        max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, accelerator="cpu"
    )
    trainer.fit(model, loader(0))
    path = next(tmp_path.rglob("*.ckpt"))
    made = retuned(read_checkpoint(path), 0.5, path.parent)
    callback.retune(model, 0.5)
    assert same(weights_of(model), made["state_dict"])
    moved = tmp_path / "elsewhere"
    (path.parent / "snapshots").rename(moved)
    with pytest.raises(ValueError, match=r"must be whole in one of .*snapshots"):
        retuned(read_checkpoint(path), 0.5, path.parent)


def test_a_checkpoint_that_was_loaded_can_be_merged_again_and_goes_on(tmp_path):
    trained(tmp_path)
    asked, _ = trained(plasticity=0.5)
    model, callback = Plain(), RecallCallback(every=1.0, plasticity=0.8, merge_first_task=False)
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    callback.load_state_dict(checkpoint["callbacks"]["RecallCallback"])
    callback.retune(model, 0.5)
    assert same(weights_of(asked), weights_of(model))
    torch.save(in_file(tmp_path, 0.5), tmp_path / "other.ckpt")
    resumed = quiet_trainer(callback, max_epochs=2)
    callback.begin_task(2)
    resumed.fit(model, loader(2), ckpt_path=tmp_path / "other.ckpt")
    assert [record["task"] for record in callback.history] == [1, 2]


def test_a_monitor_says_that_its_last_row_is_of_before(tmp_path):
    torch.manual_seed(0)
    model, callback = Plain(), RecallCallback(keep_live=True)
    monitor = ForgettingMonitor("val/acc")
    trainer = Trainer(
        max_epochs=1,
        callbacks=[callback, monitor],
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(model, loader(0), [loader(0, 64, shuffle=False)])
    (matrix,) = tmp_path.rglob("task_matrix.json")
    assert "retuned" not in json.loads(matrix.read_text())
    quiet_trainer().validate(model, [loader(0)], verbose=False)  # another Trainer's model by now
    callback.retune(model, 0.5)
    assert "after task 0, before retuning" in monitor.record.table()
    assert json.loads(matrix.read_text())["retuned"] == [0]
    merges = json.loads(matrix.with_name("merges.json").read_text())
    assert merges[-1]["plasticity"] == 0.5
    assert "The last merge was made again afterwards" in lost(monitor.record)


def test_a_validation_measures_the_row_of_a_merge_that_was_made_again(tmp_path):
    torch.manual_seed(0)
    model, callback = Plain(), RecallCallback(keep_live=True)
    monitor, vals = ForgettingMonitor("val/acc"), [loader(0, 64, shuffle=False)]
    trainer = Trainer(max_epochs=3, callbacks=[callback, monitor], default_root_dir=tmp_path)
    trainer.fit(model, loader(0), vals)
    callback.retune(model, 0.05)
    (measured,) = trainer.validate(model, vals, verbose=False)
    assert monitor.matrix == [[measured["val/acc"]]]
    (matrix,) = tmp_path.rglob("task_matrix.json")
    written = json.loads(matrix.read_text())
    assert "retuned" not in written
    assert written["matrix"] == monitor.matrix


def test_a_rollback_to_a_merge_that_was_made_again_says_so(tmp_path):
    torch.manual_seed(0)
    model, callback = Plain(), RecallCallback(keep_live=True)
    monitor = ForgettingMonitor("val/acc", limits={"task 0": 0.0}, on_limit="rollback")
    vals = [loader(task, 64, shuffle=False) for task in range(2)]
    quiet_trainer(callback, monitor, max_epochs=3).fit(model, loader(0), vals)
    callback.retune(model, 0.2)
    quiet_trainer(callback, monitor, max_epochs=8).fit(model, loader(1), vals)
    assert "after task 1, rolled back, before retuning" in monitor.record.table()


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written():
    _, callback = trained()
    other = Plain(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)))
    before = weights_of(other)
    with pytest.raises(MisconfigurationException, match=r"net\.\d"):
        callback.retune(other, 0.5)
    assert same(before, weights_of(other))


def test_what_was_kept_is_gone_when_the_next_task_starts():
    class Retunes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            callback.retune(pl_module, 0.5)

    model, callback = trained()
    callback.retune(model, 0.5)
    with pytest.raises(MisconfigurationException, match="the next task has started"):
        quiet_trainer(callback, Retunes()).fit(model, loader(2))


def test_a_checkpoint_is_left_as_it_was_and_tied_weights_stay_tied(tmp_path):
    trained(tmp_path)
    checkpoint = read_checkpoint(tmp_path / "end.ckpt")
    before = {name: weight.clone() for name, weight in checkpoint["state_dict"].items()}
    checkpoint["state_dict"]["again"] = checkpoint["state_dict"]["net.0.weight"]
    checkpoint["state_dict"]["turned"] = checkpoint["state_dict"]["net.0.weight"].T
    made = retuned(checkpoint, 0.5, tmp_path)["state_dict"]
    assert torch.equal(made["again"], made["net.0.weight"])
    assert torch.equal(made["turned"].T, made["net.0.weight"])
    assert made["turned"].data_ptr() == made["net.0.weight"].data_ptr()
    assert same(before, checkpoint["state_dict"])
    assert not same(before, made)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keep_live": False}, "is not kept: keep_live=True does so"),
        ({"keep_live": "auto"}, "is not kept: keep_live=True does so"),
        (
            {"keep_live": "auto", "plasticity": None},
            "its rule's own balance: others are tried with a plasticity",
        ),
    ],
)
def test_what_was_not_kept_is_told(kwargs, message, tmp_path):
    model, callback = trained(tmp_path, **kwargs)
    with pytest.raises(MisconfigurationException, match=message):
        callback.retune(model, 0.5)
    with pytest.raises(ValueError, match=message):
        in_file(tmp_path, 0.5)


def test_a_task_that_was_rolled_back_cannot_be_merged_again():
    model, callback = Plain(), RecallCallback(keep_live=True)
    monitor = ForgettingMonitor("val/acc", limits={"task 0": 0.0}, on_limit="rollback")
    vals = [loader(task, 64, shuffle=False) for task in range(2)]
    torch.manual_seed(0)
    quiet_trainer(callback, monitor, max_epochs=3).fit(model, loader(0), vals)
    quiet_trainer(callback, monitor, max_epochs=8).fit(model, loader(1), vals)
    with pytest.raises(MisconfigurationException, match="was rolled back"):
        callback.retune(model, 0.5)


def test_before_any_merge_nothing_can_be_made_again():
    with pytest.raises(MisconfigurationException, match="nothing has been merged yet"):
        RecallCallback(keep_live=True).retune(Plain(), 0.5)


def test_a_rule_of_ones_own_is_merged_again_by_the_callback_alone(tmp_path):
    class Own(MergeRule):
        def coefficients(self, inputs):
            return {block.name: 0.5 for block in inputs.blocks}

    model, callback = trained(tmp_path, rule=Own())
    callback.retune(model, 0.5)
    asked, _ = trained(plasticity=0.5, rule=Own())
    assert same(weights_of(asked), weights_of(model))
    with pytest.raises(ValueError, match="class of your own without a name"):
        in_file(tmp_path, 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"plasticity": None, "keep_live": True}, "no effect without plasticity"),
        ({"plasticity": 0.9, "keep_live": True, "buffers": "recalibrate"}, "measured on batches"),
        ({"keep_live": "yes"}, "must be True, False or 'auto'"),
    ],
)
def test_settings_of_no_effect_are_refused(kwargs, message):
    with pytest.raises(MisconfigurationException, match=message):
        RecallCallback(**kwargs)


@pytest.mark.parametrize("share", [0, 1, 95, "0.9"])
def test_a_share_that_is_none_is_refused(share):
    model, callback = trained()
    before = weights_of(model)
    with pytest.raises(MisconfigurationException, match="must be a share between 0 and 1"):
        callback.retune(model, share)
    assert same(before, weights_of(model))
