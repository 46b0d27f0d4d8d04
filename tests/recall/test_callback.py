import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import RecallCallback, TaskStream
from tests.support.callbacks import (
    BLOCKS,
    FEW,
    Fixed,
    Never,
    assert_fails_at_start,
    recall,
    same,
    statistic,
    weights_of,
)
from tests.support.training import Plain, loader, quiet_trainer, task_data


def constant(value, strength=1.0):
    return Fixed(dict.fromkeys(BLOCKS, value), strength)


def values(record):
    return set(record["coefficient"].values())


def test_a_run_that_never_merges_is_bit_identical_to_one_without_the_callback():
    def train(*callbacks):
        torch.manual_seed(7)
        model = Plain(nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 2)))
        quiet_trainer(*callbacks, max_epochs=3).fit(model, loader(0))
        return weights_of(model)

    assert same(train(), train(Never(samples=FEW, rule="rbf", end_rule="subspace")))
    assert not same(train(), train(recall()))


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"every": 0.25}, [2, 4, 6, 8]),
        ({"every": 3}, [3, 6, 8]),
        ({"every": 3, "end_rule": "never"}, [3, 6]),
        ({"every": 0.5, "end_rule": "never"}, [4]),
        ({"every": 1.0}, [8]),
        ({"every": 100}, [8]),
    ],
)
def test_the_schedule(arguments, steps):
    callback = recall(**arguments)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == steps


def test_the_rule_merges_in_the_loop_and_the_end_rule_at_the_end():
    callback = RecallCallback(every=2, rule=constant(0.25), end_rule=constant(0.5))
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.25}, {0.25}, {0.5}]


def test_each_rule_has_a_strength_of_its_own():
    rules = {"rule": constant(0.5, strength=0.5), "end_rule": constant(0.5)}
    callback = RecallCallback(every=4, **rules)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.5}]


def test_a_rule_alone_merges_at_the_end_too_with_its_strength():
    callback = RecallCallback(every=4, rule=constant(0.5, strength=0.5))
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.25}]


def test_without_a_merge_at_the_end_the_last_step_is_none_even_if_the_interval_falls_on_it():
    callback = RecallCallback(every=4, rule=constant(0.5), end_rule="never")
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == [4]


def test_a_fit_that_stops_early_ends_with_the_end_rule():
    class Stops(Plain):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 4

    callback = RecallCallback(every=100, rule=constant(0.25), end_rule=constant(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(callback, max_epochs=2, min_epochs=0).fit(Stops(), loader(0))
    assert [values(record) for record in callback.history] == [{0.5}]


def test_merges_fall_between_optimizer_steps_only():
    class Watched(Plain):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.clean = all(p.grad is None or not p.grad.any() for p in self.parameters())

    callback = recall(every=1)
    model = Watched()
    quiet_trainer(callback, accumulate_grad_batches=4).fit(model, loader(0))
    assert [record["step"] for record in callback.history] == [1, 2]


def test_the_first_task_can_be_left_alone():
    callback, model = recall(merge_first_task=False), Plain()
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    assert {record["task"] for record in callback.history} == {1}


def test_a_new_callback_that_leaves_its_first_task_unmerged_is_told_of_the_one_before():
    model = Plain()
    callback = recall(merge_first_task=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*under another one")
        for task in range(2):
            quiet_trainer(callback, max_epochs=1).fit(model, loader(task))
        quiet_trainer(recall(merge_first_task=True), max_epochs=1).fit(model, loader(2))
    with pytest.warns(UserWarning, match="under another one before.*build the callback once"):
        quiet_trainer(recall(merge_first_task=False), max_epochs=1).fit(model, loader(2))


def test_the_snapshot_is_the_weights_at_the_boundary():
    callback, model = recall(every=2), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    boundary = weights_of(model)
    quiet_trainer(callback).fit(model, loader(1))
    assert same(dict(callback.snapshots[-1]), boundary)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "64-true"])
def test_precisions(precision):
    callback = recall(every=4)
    quiet_trainer(callback, precision=precision).fit(Plain(), loader(0))
    assert all(0.26 < w <= 0.5 for r in callback.history for w in r["coefficient"].values())


def test_a_resumed_run_ends_like_the_uninterrupted_one(tmp_path):
    pairs = [(task_data(task), task_data(task, 16)) for task in range(2)]
    data = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=2)

    class Checkpoint(RecallCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def train(ckpt_path=None):
        torch.manual_seed(0)
        model, callback = Plain(), Checkpoint(every=0.2)
        trainer = quiet_trainer(callback, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return weights_of(model), [record["coefficient"] for record in callback.history]

    whole = train()
    for epoch in range(3):
        weights, coefficients = train(tmp_path / f"{epoch}.ckpt")
        assert coefficients == whole[1]
        assert same(weights, whole[0])


def test_a_pattern_that_matches_nothing():
    assert_fails_at_start(
        Plain(), loader(0), r"'layers\.\*' matches no module", blocks=["layers.*"]
    )


def test_a_model_without_blocks():
    class Bare(Plain):
        def __init__(self):
            super().__init__(nn.Identity())
            self.matrix = nn.Parameter(torch.randn(8, 2))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(batch[0] @ self.matrix, batch[1])

    assert_fails_at_start(Bare(), loader(0), "no block was found in Bare: name its blocks")


def test_a_fraction_of_a_task_without_length():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from task_data(0)

    assert_fails_at_start(Plain(), DataLoader(Endless(), batch_size=8), "every=0.05 is a fraction")


def test_a_task_without_length_is_merged_at_its_end():
    class Unknown(IterableDataset):
        def __iter__(self):
            yield from task_data(0)

    callback = RecallCallback()  # of a pre-trained model: once a task
    quiet_trainer(callback).fit(Plain(), DataLoader(Unknown(), batch_size=8))
    assert [merge["step"] for merge in callback.history] == [8]


def test_a_fraction_of_endless_training_is_refused_before_it_starts():
    with pytest.raises(MisconfigurationException, match=r"every=0\.05 is a fraction"):
        quiet_trainer(recall(), max_epochs=-1).fit(Plain(), loader(0))


def test_a_strategy_that_cannot_work_is_named():
    from lightning.pytorch.strategies import FSDPStrategy

    callback = recall()
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(MisconfigurationException, match="does not support FSDPStrategy"):
        callback.setup(trainer, Plain(), "fit")


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_task_and_merges_are_in_the_progress_bar(bar, capfd):
    data = TaskStream.from_datasets([(task_data(0), task_data(0, 16))], names=["red"], batch_size=8)
    trainer = quiet_trainer(
        recall(), bar(), enable_progress_bar=True, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(Plain(), datamodule=data)
    shown = "".join(capfd.readouterr())
    assert "red" in shown
    assert "merges" in shown
    assert "get_metrics" not in vars(trainer.progress_bar_callback)


def test_a_module_that_steps_as_it_likes_is_merged_at_fractions_of_the_task():
    from tests.callbacks.test_task_aware import StepsEachFourBatches

    callback = recall(every=0.25)
    quiet_trainer(callback).fit(StepsEachFourBatches(), loader(0, samples=512))
    assert [record["step"] for record in callback.history] == [4, 8, 12, 16]


def test_a_new_model_is_never_merged_with_the_last_ones_snapshot():
    class Fails(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 5:
                raise RuntimeError("interrupted")

    callback, model = recall(every=1.0), Plain()
    with pytest.raises(RuntimeError, match="interrupted"):
        quiet_trainer(callback).fit(Fails(), loader(0))
    before = weights_of(model)
    quiet_trainer(callback).fit(model, loader(0))
    assert same(dict(callback.snapshots[-1]), before)


def test_a_transfer_hook_that_augments_does_not_break_bit_identity():
    class Augments(Plain):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]]

    def train(*callbacks):
        torch.manual_seed(7)
        model = Augments()
        quiet_trainer(*callbacks).fit(model, loader(0))
        return weights_of(model)

    assert same(train(), train(Never(rule="rbf", samples=FEW)))


def test_an_early_stop_says_that_its_merge_came_last():
    stop = EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    with pytest.warns(
        UserWarning, match=r"trainer.validate\(model, …\) and trainer.save_checkpoint"
    ):
        quiet_trainer(recall(every=1.0), stop, max_epochs=3).fit(Plain(), loader(0), loader(0))


def test_new_trainers_carry_the_statistics_of_earlier_tasks_on():
    callback, model = RecallCallback(every=2, rule="importance", end_rule="subspace"), Plain()
    for task in range(3):
        quiet_trainer(callback).fit(model, loader(task))
    assert statistic(callback, "importance").tasks == 3
    assert statistic(callback, "moments").known.tasks == 4  # and what was before


def test_a_task_that_is_not_merged_is_learned_from():
    callback = RecallCallback(
        every=2, rule="importance", end_rule="subspace", merge_first_task=False
    )
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert callback.history == []
    assert statistic(callback, "importance").tasks == 1
    assert statistic(callback, "moments").known.tasks == 1


def test_the_state_is_plain_enough_to_be_loaded_with_weights_only(tmp_path):
    callback = RecallCallback(every=4, rule="rbf*importance", end_rule="subspace", samples=FEW)
    quiet_trainer(callback).fit(Plain(), loader(0))
    torch.save(callback.state_dict(), tmp_path / "state")
    torch.load(tmp_path / "state", weights_only=True)


def test_a_compiled_module_is_merged_by_its_own_names():
    class Compiled(Plain):
        def __init__(self):
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    callback = RecallCallback(every=4, rule="importance", end_rule="subspace")
    quiet_trainer(callback).fit(Compiled(), loader(0))
    assert set(callback.history[-1]["condition"]) == set(BLOCKS)
    assert set(statistic(callback, "importance").by_name) == set(weights_of(Plain()))
