"""Which rule merges when, and what every rule does in every run."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback, TaskStream
from recall_lightning.merging.rules import RULE_NAMES, ImportanceRule, SubspaceRule, UniformRule
from tests.recall.test_callback import CASES, SMALL, Diverges, Fixed, same, weights_of
from tests.support.training import Plain, loader, quiet_trainer, task_data

BLOCKS = ("net.0", "net.2", "net.4")


def constant(value):
    return Fixed(dict.fromkeys(BLOCKS, value))


def values(record):
    return set(record["coefficient"].values())


def test_the_rule_merges_in_the_loop_and_the_end_rule_at_the_end():
    callback = RecallCallback(every=2, rule=constant(0.25), end_rule=constant(0.5), strength=1.0)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.25}, {0.25}, {0.5}]


def test_strength_scales_the_rule_and_not_the_end_rule_even_if_they_are_one_object():
    one = constant(0.5)
    callback = RecallCallback(every=4, rule=one, end_rule=one, strength=0.5)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.5}]


def test_without_an_end_rule_rule_and_strength_count_at_the_end_too():
    callback = RecallCallback(every=4, rule=constant(0.5), end_rule=None, strength=0.5)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.25}, {0.25}]


def test_at_task_end_false_never_uses_the_end_rule():
    callback = RecallCallback(every=3, rule=constant(0.5), end_rule=constant(1.0), strength=1.0)
    callback.at_task_end = False
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [values(r) for r in callback.history] == [{0.5}, {0.5}]


def test_a_fit_that_stops_early_ends_with_the_end_rule():
    class Stops(Plain):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = batch_idx == 4

    callback = RecallCallback(every=100, rule=constant(0.25), end_rule=constant(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(callback, max_epochs=2, min_epochs=0).fit(Stops(), loader(0))
    assert [values(record) for record in callback.history] == [{0.5}]


def test_what_no_rule_uses_is_not_gathered():
    callback = RecallCallback(every=2, rule=UniformRule(), end_rule=None, strength=0.1)
    quiet_trainer(callback).fit(Plain(), loader(0))
    statistics = callback._statistics
    assert statistics.moments.old == {}
    assert statistics.importance.by_name == {}
    assert not statistics.probe.has_typical_samples


def test_scaled_matrices_move_weights_by_that_much_less():
    class Spy(RecallCallback):
        def _merge(self, trainer, pl_module, rule):
            self.live = weights_of(pl_module)
            super()._merge(trainer, pl_module, rule)

    def moved(strength):
        torch.manual_seed(0)
        spy, model = Spy(every=1.0, rule="subspace", end_rule=None, strength=strength), Plain()
        quiet_trainer(spy).fit(model, loader(0))
        return {name: now - spy.live[name] for name, now in weights_of(model).items()}

    whole, half = moved(1.0), moved(0.5)
    for name in whole:
        torch.testing.assert_close(half[name], 0.5 * whole[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", [*RULE_NAMES, "rbf*importance", "cosine*subspace"])
@pytest.mark.parametrize("end_rule", ["subspace", "kfac_subspace", "importance", None])
def test_every_pair_of_rules_merges_a_stream_of_fits(rule, end_rule):
    callback = RecallCallback(every=0.5, rule=rule, end_rule=end_rule, strength=0.5, **SMALL)
    model = Plain()
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    assert [record["task"] for record in callback.history] == [0, 0, 1, 1]
    for record in callback.history:
        assert list(record["coefficient"]) == list(BLOCKS)
        assert all(0 <= value <= 1 for value in record["coefficient"].values())
    at_end = rule if end_rule is None else end_rule
    has_matrices = "subspace" in at_end or "kfac" in at_end
    assert ("condition" in callback.history[-1]) == has_matrices


@pytest.mark.parametrize(
    "rules", [("rbf", "subspace"), ("importance", "subspace"), ("kfac_importance", "kfac_subspace")]
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:the subspace rule has no inputs")
def test_models_of_every_kind_are_merged_by_every_rule(case, rules):
    module, data = CASES[case]()
    callback = RecallCallback(every=2, rule=rules[0], end_rule=rules[1], **SMALL)
    quiet_trainer(callback).fit(module, data)
    record = callback.history[-1]
    assert record["condition"]
    assert len(record["coefficient"]) >= 2
    assert all(0 < value < 1 for value in record["coefficient"].values())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.filterwarnings("ignore:the inputs of")
def test_weights_that_are_not_finite_are_refused_by_every_rule(rule):
    callback = RecallCallback(every=3, rule=rule, end_rule=None, strength=0.5, **SMALL)
    model = Diverges()
    with pytest.warns(UserWarning, match="merge refused at step 6, weights kept"):
        quiet_trainer(callback).fit(model, loader(0))
    assert [record["step"] for record in callback.history] == [3]


def test_a_matrix_that_could_not_be_solved_for_writes_nothing(monkeypatch):
    """Not even the weights that come before it."""
    model, before = Plain(), []

    class Unsolvable(SubspaceRule):
        def coefficients(self, inputs):
            weights = super().coefficients(inputs)
            weights["net.4.weight"].condition = float("nan")
            before.append({name: tensor.clone() for name, tensor in inputs.live.items()})
            return weights

    callback = RecallCallback(every=1.0, rule="importance", end_rule=Unsolvable())
    with pytest.warns(UserWarning, match=r"merge refused.*'net\.4\.weight' is not finite"):
        quiet_trainer(callback).fit(model, loader(0))
    assert same(weights_of(model), before[0])


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (("importance", "subspace"), {}),
        (("importance", "subspace"), {"moment_width": 1, "moment_rank": 3}),
        (("kfac_importance", "kfac_subspace"), {}),
        (("rbf", "importance"), {"importance_source": "gradients", "importance_steps": 12}),
    ],
)
def test_a_resumed_run_ends_like_the_uninterrupted_one(rules, options, tmp_path):
    """Epochs 0 and 2 end in the middle of a task."""
    pairs = [(task_data(task), task_data(task, 16)) for task in range(2)]
    data = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=2)

    class Checkpoint(RecallCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def train(ckpt_path=None):
        torch.manual_seed(0)
        model = Plain()
        callback = Checkpoint(every=0.3, rule=rules[0], end_rule=rules[1], **SMALL, **options)
        trainer = quiet_trainer(callback, max_epochs=4, reload_dataloaders_every_n_epochs=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return weights_of(model), [record["coefficient"] for record in callback.history]

    weights, coefficients = train()
    for epoch in range(3):
        again = train(tmp_path / f"{epoch}.ckpt")
        assert again[1] == coefficients
        assert same(again[0], weights)


def test_new_trainers_carry_the_statistics_of_earlier_tasks_on():
    callback, model = RecallCallback(every=2, rule="importance", end_rule="subspace"), Plain()
    for task in range(3):
        quiet_trainer(callback).fit(model, loader(task))
    statistics = callback._statistics
    assert (statistics.importance.tasks, statistics.moments.tasks) == (3, 4)  # and what was before


def test_a_task_that_is_not_merged_is_learned_from():
    callback = RecallCallback(
        every=2, rule="importance", end_rule="subspace", merge_first_task=False
    )
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert callback.history == []
    assert (callback._statistics.importance.tasks, callback._statistics.moments.tasks) == (1, 1)


def test_random_samples_are_drawn_by_the_seed_and_measured_like_others():
    def typical(seed):
        torch.manual_seed(0)
        callback = RecallCallback(
            every=4, rule="rbf", end_rule=None, sampling="random", seed=seed, **SMALL
        )
        quiet_trainer(callback).fit(Plain(), loader(0))
        assert 0.26 < min(callback.history[0]["coefficient"].values()) <= 0.5
        return torch.cat([batch[0] for batch in callback._statistics.probe._typical])

    assert typical(0).shape == (8, 8)
    assert len(typical(0).unique(dim=0)) == 8
    assert torch.equal(typical(1), typical(1))
    assert not torch.equal(typical(0), typical(1))


def test_the_state_is_plain_enough_to_be_loaded_with_weights_only(tmp_path):
    callback = RecallCallback(every=4, rule="rbf*importance", end_rule="subspace", **SMALL)
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
    assert set(callback._statistics.importance.by_name) == set(weights_of(Plain()))


def test_gradients_optimizer_and_mode_are_left_alone_by_the_subspace_rule():
    model = Plain(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)))
    state, rule = {}, SubspaceRule()

    class Watches(RecallCallback):
        def _merge(self, trainer, pl_module, rule):
            optimizer = trainer.optimizers[0]
            before = copy.deepcopy(optimizer.state_dict()["state"]), torch.get_rng_state()
            batches = int(pl_module.net[1].num_batches_tracked)
            super()._merge(trainer, pl_module, rule)
            after = optimizer.state_dict()["state"]
            state["optimizer"] = all(
                torch.equal(after[i][k], v) for i, s in before[0].items() for k, v in s.items()
            )
            state["rng"] = torch.equal(torch.get_rng_state(), before[1])
            state["batches"] = batches == int(pl_module.net[1].num_batches_tracked)
            state["mode"] = all(child.training for child in pl_module.modules())

    quiet_trainer(Watches(every=4, rule=rule, end_rule=ImportanceRule())).fit(model, loader(0))
    assert state == dict.fromkeys(("optimizer", "rng", "batches", "mode"), True)


@pytest.mark.parametrize("arguments", [{"rule": "uniform"}, {"end_rule": "uniform"}])
def test_averaging_that_would_undo_a_whole_task_is_refused(arguments):
    with pytest.raises(MisconfigurationException, match=r"such as 0\.2|has no weight"):
        RecallCallback(**arguments)


def test_generated_moments_need_a_model_that_generates():
    callback = RecallCallback(moment_source="generated")
    with pytest.raises(MisconfigurationException, match="needs a causal language model"):
        quiet_trainer(callback).fit(Plain(), loader(0))


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
            inputs, labels = batch
            return super().training_step((inputs, labels.bool().long()), batch_idx)

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
