import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import MergeRule, RecallCallback
from recall_lightning.merging.rules import UniformRule
from tests.recall.test_callback import Fixed, recall
from tests.support.training import Plain, loader, quiet_trainer, task_data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "mean"}, "rule='mean' is unknown"),
        ({"every": 0}, "every=0 must be"),
        ({"every": -0.5}, "every=-0.5 must be"),
        ({"every": 1.5}, "every=1.5 must be"),
        ({"every": True}, "every=True must be"),
        ({"every": math.nan}, "every=nan must be"),
        ({"typical_samples": 1}, "typical_samples=1 must be 2 or more"),
        ({"pool_size": 4}, "pool_size=4 must be at least typical_samples=8"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        recall(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.3}, "temperature=0.3 has no effect: no rule of 'importance'"),
        ({"sampling": "random", "end_rule": UniformRule(0.1)}, "of 'importance' and UniformRule"),
        ({"rule": "uniform", "strength": 0.1, "importance_steps": 9}, "importance_steps=9"),
    ],
)
def test_arguments_that_no_rule_uses_are_named(arguments, message):
    with pytest.warns(UserWarning, match=message):
        RecallCallback(**({"rule": "importance", "end_rule": None} | arguments))


def test_arguments_that_a_rule_uses_are_not(recwarn):
    RecallCallback(rule="rbf*importance", temperature=0.3, importance_scale=1.0, new_inputs=2.0)
    assert not recwarn


def assert_fails_at_start(module, data, message, **arguments):
    callback = recall(**arguments)
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(callback).fit(module, data)
    assert callback.history == []


def test_fewer_data_than_typical_samples():
    assert_fails_at_start(
        Plain(), loader(0, samples=5), "typical_samples=8 cannot be chosen from the 5"
    )


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


def test_inputs_that_cannot_be_found_say_what_to_pass_and_passing_it_helps():
    class Named(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["image"], batch["label"]), batch_idx)

    data = [{"image": x, "label": y} for x, y in task_data(0)]
    loading = DataLoader(data, batch_size=8)
    assert_fails_at_start(Named(), loading, "entries image, label.*pass view=lambda module, batch")
    callback = recall(every=0.5, view=lambda module, batch: module.net(batch["image"]))
    quiet_trainer(callback).fit(Named(), loading)
    assert len(callback.history) == 2


def test_a_probe_that_is_not_finite():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Plain().net

        def forward(self, inputs):
            return self.layers(inputs) if self.training else self.layers(inputs * math.inf)

    assert_fails_at_start(Plain(Overflows()), loader(0), "hold NaN or infinite values")


def test_a_fraction_of_a_task_without_length():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from task_data(0)

    assert_fails_at_start(Plain(), DataLoader(Endless(), batch_size=8), "every=0.05 is a fraction")


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [({}, "no coefficient for block net.0"), ({"net.0": 1.5}, "block net.0 the coefficient 1.5")],
)
def test_what_a_rule_returns_is_checked(coefficients, message):
    class Bad(Fixed):
        def coefficients(self, inputs):
            return self.given

    model = Plain()
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(recall(rule=Bad(coefficients))).fit(model, loader(0))


def test_a_model_that_changed_since_the_snapshot():
    class Grows(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.net[0] = nn.Linear(8, 20)
                self.net[2] = nn.Linear(20, 16)

    with pytest.raises(
        MisconfigurationException, match=r"no longer matches the model.*net.0.weight"
    ):
        quiet_trainer(recall()).fit(Grows(), loader(0))


def test_a_strategy_that_cannot_work_is_named():
    from lightning.pytorch.strategies import FSDPStrategy

    callback = recall()
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(MisconfigurationException, match="does not support FSDPStrategy"):
        callback.setup(trainer, Plain(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": MergeRule}, "must be the name of a rule or a MergeRule object"),
        ({"snapshot_device": "gpu"}, "snapshot_device='gpu' is no device"),
        ({"typical_samples": 8.5}, "typical_samples=8.5"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_at_once(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        recall(**arguments)


def test_a_fraction_of_endless_training_is_refused_before_it_starts():
    with pytest.raises(MisconfigurationException, match=r"every=0\.05 is a fraction"):
        quiet_trainer(recall(), max_epochs=-1).fit(Plain(), loader(0))


def test_a_view_that_fails_is_blamed_itself():
    assert_fails_at_start(
        Plain(), loader(0), "your view could not be run.*list.*TypeError",
        view=lambda module, batch: module.net(batch["x"]),
    )  # fmt: skip
