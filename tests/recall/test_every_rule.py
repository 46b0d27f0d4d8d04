"""What every rule does in every run."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback, TaskStream
from recall_lightning.merging import rules
from recall_lightning.merging.blockwise import Drift
from recall_lightning.merging.rules import Cosine, Importance, Product, Rbf, Subspace, Uniform
from recall_lightning.recall.settings import ImportanceSettings, MomentSettings
from tests.support.callbacks import (
    BLOCKS,
    FEW,
    recall,
    same,
    weights_of,
)
from tests.support.model_kinds import CASES, Diverges
from tests.support.training import Plain, loader, quiet_trainer, task_data


@pytest.mark.parametrize("case", CASES)
def test_models_of_every_kind_are_merged_as_they_are(case):
    module, data = CASES[case]()
    callback = recall(every=2)
    quiet_trainer(callback).fit(module, data)
    record = callback.history[-1]
    assert len(record["coefficient"]) >= 2
    assert all(0.26 < value <= 0.5 for value in record["coefficient"].values())


RULES = {n: r for n, r in rules.base.RULES.items() if r.__module__.startswith(rules.__name__)}
"""Those that ship; tests define others."""
HALF = {name: partial(rule, strength=0.5) for name, rule in RULES.items() if name != "uniform"}
HALF["uniform"] = partial(Uniform, 0.5)
HALF["rbf*importance"] = partial(Product, [Rbf(), Importance()], strength=0.5)
HALF["cosine*subspace"] = partial(Product, [Cosine(), Subspace()], strength=0.5)


def settings_for(rule):
    """Settings for short tasks, as far as the rules have a use for them."""
    return {"samples": FEW} if "similarity" in rule.needs else {}


@pytest.mark.parametrize("rule", HALF)
@pytest.mark.parametrize("end_rule", ["subspace", "kfac_subspace", "importance", None])
def test_every_pair_of_rules_merges_a_stream_of_fits(rule, end_rule):
    loop = HALF[rule]()
    callback = RecallCallback(every=0.5, rule=loop, end_rule=end_rule, **settings_for(loop))
    model = Plain()
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    assert [record["task"] for record in callback.history] == [0, 0, 1, 1]
    for record in callback.history:
        assert list(record["coefficient"]) == list(BLOCKS)
        assert all(0 <= value <= 1 for value in record["coefficient"].values())
    has_matrices = "moments" in callback.end_rule.needs
    assert ("condition" in callback.history[-1]) == has_matrices


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "rbf", "end_rule": "subspace", "samples": FEW},
        {"rule": "importance", "end_rule": "subspace"},
        {"rule": "kfac_importance", "end_rule": "kfac_subspace"},
    ],
    ids=lambda arguments: arguments["rule"],
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:there are no inputs")
def test_models_of_every_kind_are_merged_by_every_rule(case, arguments):
    module, data = CASES[case]()
    callback = RecallCallback(every=2, **arguments)
    quiet_trainer(callback).fit(module, data)
    record = callback.history[-1]
    assert record["condition"]
    assert len(record["coefficient"]) >= 2
    assert all(0 < value < 1 for value in record["coefficient"].values())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore:the inputs of")
def test_weights_that_are_not_finite_are_refused_by_every_rule(rule):
    loop = HALF[rule]()
    callback = RecallCallback(every=3, rule=loop, end_rule=loop, **settings_for(loop))
    model = Diverges()
    with pytest.warns(UserWarning, match="merge refused at step 6, weights kept"):
        quiet_trainer(callback).fit(model, loader(0))
    assert [record["step"] for record in callback.history] == [3]


def merged_once(rule, plasticity):
    """Train two tasks and merge at the end; return the model, and the callback."""
    torch.manual_seed(0)
    own, model = Uniform(0.3) if rule == "uniform" else RULES[rule](), Plain()
    given = {"rule": own, "end_rule": own, "merge_first_task": False, **settings_for(own)}
    callback = RecallCallback(every=1.0, plasticity=plasticity, refit_head=False, **given)
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    assert len(callback.history) == 1
    return model, callback


@pytest.mark.parametrize("rule", RULES)
def test_less_plasticity_keeps_more_of_what_the_snapshot_predicts_by_every_rule(rule):
    inputs, _ = task_data(0).tensors

    def distance(plasticity):
        model, callback = merged_once(rule, plasticity)
        with torch.no_grad():
            with callback.snapshots[-1].applied_to(model):
                then = model.net(inputs)
            return float((model.net(inputs) - then).norm())

    little, some, much = map(distance, (0.98, 0.7, 0.3))
    assert little > some > much > 0


@pytest.mark.parametrize("rule", [name for name in RULES if "subspace" not in name])
def test_rules_that_go_between_the_two_keep_more_of_its_weights_too(rule):
    """The subspace rules keep what maps compute on inputs, by weights that may lie outside."""

    def distance(plasticity):
        model, callback = merged_once(rule, plasticity)
        return Drift(callback.snapshots[-1]).by_block(weights_of(model), callback.blocks)

    little, some, much = map(distance, (0.98, 0.7, 0.3))
    assert all(little[b] >= some[b] >= much[b] for b in BLOCKS)
    assert any(little[b] > 1.01 * some[b] > 1.01**2 * much[b] > 0 for b in BLOCKS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "importance", "end_rule": "subspace"},
        {
            "rule": "importance",
            "end_rule": "subspace",
            "moments": MomentSettings(width=1, rank=3),
        },
        {"rule": "kfac_importance", "plasticity": 0.8},
        {
            "rule": "rbf",
            "end_rule": "importance",
            "samples": FEW,
            "importance": ImportanceSettings("gradients", steps=12),
        },
    ],
    ids=["plain", "low rank", "curvature", "gradients"],
)
def test_a_resumed_run_ends_like_the_uninterrupted_one(arguments, tmp_path):
    """Epochs 0 and 2 end in the middle of a task."""
    pairs = [(task_data(task), task_data(task, 16)) for task in range(2)]
    data = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=2)

    class Checkpoint(RecallCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def train(ckpt_path=None):
        torch.manual_seed(0)
        model = Plain()
        callback = Checkpoint(every=0.3, **arguments)
        trainer = quiet_trainer(callback, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return weights_of(model), [record["coefficient"] for record in callback.history]

    weights, coefficients = train()
    for epoch in range(3):
        again = train(tmp_path / f"{epoch}.ckpt")
        assert again[1] == coefficients
        assert same(again[0], weights)


@pytest.mark.parametrize(
    "rules", [("kfac_importance", "kfac_subspace"), ("importance", "subspace")]
)
@pytest.mark.parametrize("classes", [5, 2])
def test_a_head_that_changes_between_tasks_is_merged_as_far_as_it_is_known(rules, classes):
    def data(number):
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(32, 8, generator=generator)
        labels = torch.randint(number, (32,), generator=generator)
        return DataLoader(TensorDataset(inputs, labels), batch_size=8)

    callback = RecallCallback(every=2, rule=rules[0], end_rule=rules[1], merge_first_task=False)
    model = Plain(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    quiet_trainer(callback).fit(model, data(3))
    model.net[2] = nn.Linear(16, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(callback).fit(model, data(classes))
    assert [record["step"] for record in callback.history] == [6, 8]


def test_without_known_predictions_the_kfac_rules_are_the_plain_ones():
    class Opaque(Plain):
        def training_step(self, batch, batch_idx):
            inputs, labels = batch  # a loss that is no −log p of a known kind
            return nn.functional.multi_margin_loss(self.net(inputs), labels.long())

    data = [(x, torch.tensor(bool(y))) for x, y in task_data(0)]  # no integer classes
    results = []
    for prefix in ("", "kfac_"):
        torch.manual_seed(0)
        callback = RecallCallback(
            every=2, rule=f"{prefix}importance", end_rule=f"{prefix}subspace",
            merge_first_task=False, view=lambda module, batch: module.net(batch[0]),
        )  # fmt: skip
        model = Opaque()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                quiet_trainer(callback).fit(model, DataLoader(data, batch_size=8))
        told = any("curvature cannot be measured" in str(w.message) for w in caught)
        assert told == bool(prefix)
        results.append(weights_of(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
