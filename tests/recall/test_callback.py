from functools import partial

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import MergeRule, RecallCallback, TaskStream
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot
from tests.support.training import Plain, loader, quiet_trainer, task_data

SMALL = {"typical_samples": 8, "pool_size": 32}
SIMILARITY = {"rule": "rbf", "end_rule": None, "strength": 1.0}
"""RECALL's own rule, in the loop and at the task's end."""


def recall(**kwargs):
    return RecallCallback(**(SMALL | SIMILARITY | kwargs))


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in named_weights(model).items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Fixed(MergeRule):
    """A rule of the user's own."""

    uses_representations = False

    def __init__(self, coefficients):
        self.given = coefficients

    def coefficients(self, inputs):
        return {b.name: self.given.get(b.name, 0.0) for b in inputs.blocks}


def test_every_block_is_merged_with_its_own_coefficient():
    class Spy(RecallCallback):
        def _merge(self, trainer, pl_module, rule):
            self.live, self.then = weights_of(pl_module), dict(self.snapshots[-1])
            super()._merge(trainer, pl_module, rule)
            self.merged = weights_of(pl_module)

    spy = Spy(every=1.0, **SMALL, **SIMILARITY)
    quiet_trainer(spy).fit(Plain(), loader(0))
    coefficient = spy.history[-1]["coefficient"]
    assert len(set(coefficient.values())) == 3
    for block in spy.blocks:
        for name in block.weights:
            w = coefficient[block.name]
            expected = (1 - w) * spy.live[name] + w * spy.then[name]
            torch.testing.assert_close(spy.merged[name], expected)


def test_blocks_that_drifted_more_keep_more_of_the_new():
    callback = recall(every=1.0)
    quiet_trainer(callback, max_epochs=3).fit(Plain(), loader(0))
    record = callback.history[-1]
    by_similarity = sorted(record["similarity"], key=record["similarity"].get)
    by_coefficient = sorted(record["coefficient"], key=record["coefficient"].get)
    assert by_similarity == by_coefficient
    spread = max(record["coefficient"].values()) - min(record["coefficient"].values())
    assert spread > 0.02


def test_a_run_that_never_merges_is_bit_identical_to_one_without_the_callback():
    class Never(RecallCallback):
        def should_merge(self, step_in_task, task_steps):
            return False

    def train(*callbacks):
        torch.manual_seed(7)
        model = Plain(nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 2)))
        quiet_trainer(*callbacks, max_epochs=3).fit(model, loader(0))
        return weights_of(model)

    assert same(train(), train(Never(**SMALL, rule="rbf", end_rule="subspace")))
    assert not same(train(), train(recall()))


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"every": 0.25}, [2, 4, 6, 8]),
        ({"every": 3}, [3, 6, 8]),
        ({"every": 3, "at_task_end": False}, [3, 6]),
        ({"every": 0.5, "at_task_end": False}, [4]),
        ({"every": 1.0}, [8]),
        ({"every": 100}, [8]),
    ],
)
def test_the_schedule(arguments, steps):
    callback = recall(**arguments)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == steps


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


def test_the_snapshot_is_the_weights_at_the_boundary():
    callback, model = recall(every=2), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    boundary = weights_of(model)
    quiet_trainer(callback).fit(model, loader(1))
    assert same(dict(callback.snapshots[-1]), boundary)


def test_history_is_plain_and_complete():
    callback = recall()
    quiet_trainer(callback).fit(Plain(), loader(0))
    record = callback.history[0]
    assert set(record) == {
        "task", "step", "similarity", "coefficient", "drift", "probe_seconds", "merge_seconds"
    }  # fmt: skip
    names = [block.name for block in callback.blocks]
    for measured in ("similarity", "coefficient", "drift"):
        assert list(record[measured]) == names
        assert all(type(value) is float for value in record[measured].values())
    assert record["drift"]["net.0"] > 0


def test_uniform_merging_needs_no_probe():
    callback = recall(rule="uniform", strength=0.4)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert set(callback.history[0]["coefficient"].values()) == {0.4}
    assert callback.history[0]["similarity"] == {}


def test_what_is_merged_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    quiet_trainer(recall(), logger=logger).fit(Plain(), loader(0))
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split("\n")[0]
    for key in ("similarity/net.0", "coefficient/net.2", "drift/net.4", "probe_seconds"):
        assert f"recall/{key}" in header


def test_an_iterable_dataset_is_read_once_and_by_training_alone():
    class Once(IterableDataset):
        read = 0

        def __iter__(self):
            for sample in task_data(0):
                Once.read += 1
                yield sample

    callback = recall(every=3)
    quiet_trainer(callback).fit(Plain(), DataLoader(Once(), batch_size=8))
    assert Once.read == 64
    assert [record["step"] for record in callback.history] == [3, 6, 8]


def test_candidates_from_training_are_measured_under_the_snapshots_weights():
    """The pool is full after four steps: the snapshot's states must not be the live model's."""
    stream = DataLoader(
        list(task_data(0)),
        batch_size=8,
        sampler=torch.utils.data.WeightedRandomSampler([1.0] * 64, 64),
    )
    callback, model = recall(every=8), Plain()
    before = Snapshot.take(model)
    quiet_trainer(callback).fit(model, stream)
    assert same(dict(callback.snapshots[-1]), dict(before))
    probe = callback._statistics.probe
    with before.applied_to(model):
        states = model.net[:2](probe._typical[0][0])
    torch.testing.assert_close(probe.snapshot_states[0]["net.0"], states)


class BatchNormCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


class Batches(LightningModule):
    """Trains any model by any loss on any batch."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.model, batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Seq2Seq(Batches):
    def forward(self, source, target):
        return self.model(source, target)


def cross_entropy(model, batch):
    output = model(batch[0])
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return nn.functional.cross_entropy(logits, batch[1])


def images(count=32):
    return list(zip(torch.randn(count, 1, 8, 8), torch.randint(0, 2, (count,)), strict=True))


def encodings(items):
    ids = torch.stack(items)
    return transformers.BatchEncoding(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    )


def vit():
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, num_channels=1, num_labels=2,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


CASES = {
    "cnn with batchnorm": lambda: (
        Batches(BatchNormCNN(), cross_entropy),
        DataLoader(images(), batch_size=8),
    ),
    "vit": lambda: (Batches(vit(), cross_entropy), DataLoader(images(), batch_size=8)),
    "llama": lambda: (
        Batches(llama(), lambda model, batch: model(**batch).loss),
        DataLoader(torch.randint(0, 16, (32, 6)), batch_size=8, collate_fn=encodings),
    ),
    "encoder-decoder": lambda: (
        Seq2Seq(
            nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            lambda model, batch: model(batch[0], batch[1]).square().mean(),
        ),
        DataLoader(
            list(zip(torch.randn(32, 5, 8), torch.randn(32, 7, 8), strict=True)), batch_size=8
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_models_of_every_kind_are_merged_as_they_are(case):
    module, data = CASES[case]()
    callback = recall(every=2)
    quiet_trainer(callback).fit(module, data)
    record = callback.history[-1]
    assert len(record["coefficient"]) >= 2
    assert all(0.26 < value <= 0.5 for value in record["coefficient"].values())


def test_batchnorm_statistics_are_merged_with_their_block():
    module, data = CASES["cnn with batchnorm"]()
    callback = recall(every=1.0, rule=Fixed({"model.features.0": 1.0}))
    then = module.model.features[1].running_mean.clone()
    quiet_trainer(callback).fit(module, data)
    assert torch.equal(module.model.features[1].running_mean, then)
    assert not torch.equal(module.model.features[4].running_mean, torch.zeros(8))


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
        model, callback = Plain(), Checkpoint(every=0.2, **SMALL)
        trainer = quiet_trainer(callback, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return weights_of(model), [record["coefficient"] for record in callback.history]

    whole = train()
    for epoch in range(3):
        weights, coefficients = train(tmp_path / f"{epoch}.ckpt")
        assert coefficients == whole[1]
        assert same(weights, whole[0])


class Logs(Plain):
    """A forward that logs and draws random numbers."""

    def forward(self, inputs):
        self.log("noise", torch.rand(()))
        return self.net(inputs)


def test_what_a_forward_logs_while_probed_is_not_logged():
    trainer = quiet_trainer(recall())
    trainer.fit(Logs(), loader(0))
    assert "noise" not in trainer.callback_metrics


class Diverges(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 5:
            nn.init.constant_(self.net[2].weight, float("nan"))


def test_a_log_method_of_the_users_own_outlives_a_probe():
    module = Plain()
    module.log = own = partial(module.log, batch_size=8)
    quiet_trainer(recall(every=4)).fit(module, loader(0))
    assert module.log is own


def test_a_merge_of_weights_that_are_not_finite_is_refused_and_reported():
    callback, model = recall(every=3), Diverges()
    with pytest.warns(UserWarning, match="merge refused at step 6, weights kept"):
        quiet_trainer(callback).fit(model, loader(0))
    assert [record["step"] for record in callback.history] == [3]
    assert model.net[0].weight.isnan().sum() in (0, model.net[0].weight.numel())


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

    class Never(RecallCallback):
        def should_merge(self, step_in_task, task_steps):
            return False

    def train(*callbacks):
        torch.manual_seed(7)
        model = Augments()
        quiet_trainer(*callbacks).fit(model, loader(0))
        return weights_of(model)

    assert same(train(), train(Never(**SMALL)))


def test_a_training_step_may_take_its_batch_apart():
    class Pops(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch.pop("x"), batch.pop("y")), batch_idx)

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ({"x": x, "y": y} for x, y in task_data(0))

    callback = recall(every=2, view=lambda module, batch: module.net(batch.pop("x")))
    quiet_trainer(callback).fit(Pops(), DataLoader(Endless(), batch_size=8))
    assert len(callback.history) == 4


def test_an_early_stop_says_that_its_merge_came_last():
    stop = EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    with pytest.warns(UserWarning, match="validate and save the model once more"):
        quiet_trainer(recall(every=1.0), stop, max_epochs=3).fit(Plain(), loader(0), loader(0))
