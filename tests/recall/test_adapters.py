"""Adapters through streams of many tasks, as people keep them: one, one a task, several."""

import copy
import warnings

import peft
import pytest
import torch
from torch.utils.data import DataLoader

from recall_lightning import RecallCallback
from recall_lightning.callbacks import FreshAdapter
from recall_lightning.measuring.linear_maps import find_linear_maps
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.merging.rules import Uniform
from recall_lightning.weights.naming import named_weights
from tests.support.adapter_runs import KNEW, Adapted, sequences
from tests.support.callbacks import statistic
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import quiet_trainer


def fit(model, task, *callbacks):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is degenerate")  # no model is trained before
        data = DataLoader(sequences(task, 16), batch_size=4)
        quiet_trainer(*callbacks).fit(model, data)


def updates(model):
    weights = named_weights(model)
    factors = {pair.module: pair.factors(weights) for pair in find_lora_pairs(model)}
    return {name: (f.scale * f.b @ f.a).detach().clone() for name, f in factors.items()}


def bases(model):
    return {
        name.removesuffix(".base_layer.weight"): weight.detach().clone()
        for name, weight in model.named_parameters()
        if name.endswith(".base_layer.weight")
    }


@pytest.mark.parametrize(
    "lora",
    [{}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"v_proj": 1}, "use_rslora": True}],
    ids=["one", "saved", "ranks"],
)
def test_one_adapter_learns_ten_tasks_and_its_factors_stay_in_balance(lora):
    torch.manual_seed(0)
    model = Adapted(**lora)
    callback = RecallCallback(every=2, prior=KNEW)
    base, start = bases(model), {n: w.clone() for n, w in named_weights(model).items()}
    for task in range(10):
        before = updates(model)
        fit(model, task, callback)
        assert all(not torch.equal(before[name], now) for name, now in updates(model).items())
    assert [record["task"] for record in callback.history[::2]] == list(range(10))
    assert statistic(callback, "moments").known.tasks == 11  # and what came before
    assert all(torch.equal(weight, base[name]) for name, weight in bases(model).items())
    weights = named_weights(model)
    for pair in find_lora_pairs(model):
        rows = weights[pair.a].norm(dim=1) / start[pair.a].norm(dim=1).mean()
        assert ((rows > 0.1) & (rows < 10)).all()
        assert len(rows) == (1 if "rank_pattern" in lora and "v_proj" in pair.module else 3)
    lost = [part for r in callback.history for part in r["discarded_energy"].values()]
    assert all(0 <= part < 0.9 for part in lost)


def test_adapters_of_ten_tasks_add_up_in_the_base_and_what_was_learned_of_tasks_stays():
    torch.manual_seed(0)
    model, callback = Adapted(), RecallCallback(every=2, prior=KNEW)
    added = {name: torch.zeros_like(weight) for name, weight in bases(model).items()}
    start = bases(model)

    class Sums(FreshAdapter):
        def on_task_end(self, trainer, pl_module, task):
            for name, update in updates(pl_module).items():
                added[name] += update
            super().on_task_end(trainer, pl_module, task)

    fresh = Sums()
    for task in range(10):
        assert not any(update.any() for update in updates(model).values())
        fit(model, task, callback, fresh)
    assert statistic(callback, "moments").known.tasks == 11
    for name, weight in bases(model).items():
        torch.testing.assert_close(weight, start[name] + added[name], rtol=1e-4, atol=1e-6)
        assert added[name].abs().max() > 1e-3


def test_an_adapter_merged_into_its_base_by_peft_is_followed_by_one_of_another_rank():
    torch.manual_seed(0)
    model, callback = Adapted(), RecallCallback(every=2, prior=KNEW)
    for task, rank in enumerate((3, 5, 2)):
        if task:
            config = peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])
            model.model = peft.get_peft_model(model.model.merge_and_unload(), config)
        fit(model, task, callback)
        assert {pair.rank for pair in find_lora_pairs(model)} == {rank}
    assert [record["task"] for record in callback.history] == [0, 0, 1, 1, 2, 2]
    assert statistic(callback, "moments").known.tasks == 4
    assert (
        len(statistic(callback, "moments").known.inputs) == 4
    )  # inputs are of the layers, not of factors


def test_of_several_adapters_the_active_one_is_merged_and_the_others_stay():
    torch.manual_seed(0)
    model, callback = Adapted(), RecallCallback(every=2, rule=Uniform(0.2))
    fit(model, 0, callback)
    kept = copy.deepcopy(peft.get_peft_model_state_dict(model.model, adapter_name="default"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model.model.add_adapter("second", config)
    model.model.set_adapter("second")
    fit(model, 1, callback)
    assert all(".second." in name for name in callback.snapshots[-1])
    for name, weight in peft.get_peft_model_state_dict(model.model, adapter_name="default").items():
        assert torch.equal(weight, kept[name])
    assert {pair.rank for pair in find_lora_pairs(model)} == {2}
    assert [record["task"] for record in callback.history] == [0, 0, 1, 1]


def test_a_module_that_is_trained_as_a_whole_beside_an_adapter_is_a_linear_map():
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(tiny_llama(), config)
    pairs = {pair.a: pair.b for pair in find_lora_pairs(model)}
    maps, others = find_linear_maps(model, pairs)
    assert others == {}
    assert [one.modules[0].split("lm_head.")[-1] for one in maps][-1] == "modules_to_save.default"
