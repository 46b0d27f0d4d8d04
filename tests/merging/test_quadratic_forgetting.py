"""What is estimated of forgetting, against what can be computed."""

import pytest
import torch
from torch import nn

from recall_lightning import RecallCallback
from recall_lightning.measuring.curvature import kronecker_factors, normalised
from recall_lightning.measuring.linear_maps import find_linear_maps
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.merging.quadratic_forgetting import quadratic_forgetting
from recall_lightning.merging.rules import MergeInputs
from recall_lightning.merging.structure import Structure
from recall_lightning.weights.naming import named_weights
from tests.support.callbacks import weights_of
from tests.support.tiny_transformers import tiny_llama
from tests.support.training import Plain, loader, quiet_trainer


def known_of(module, batches, tasks=1, **structure):
    maps = find_linear_maps(module, **structure)[0]
    factors = normalised(kronecker_factors(module, maps, batches, full_width=8, rank=4))
    scaled = [
        {name: moments.scaled(tasks) for name, moments in side.items()}
        for side in (factors.inputs, factors.outputs)
    ]
    return maps, {
        "old_moments": scaled[0],
        "old_output_moments": scaled[1],
        "earlier_tasks": tasks,
        "curvature_mean": tasks * factors.mean,
    }


@pytest.mark.parametrize("tasks", [1, 3])
def test_of_a_linear_regression_it_is_the_divergence(tasks):
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 3), torch.randn(512, 4) @ torch.randn(4, 4)
    batches = [(part, torch.randn(64, 3)) for part in inputs.split(64)] * 20
    maps, known = known_of(model, batches, tasks)
    snapshot, before = weights_of(model), model(inputs).detach()
    with torch.no_grad():
        model.weight += torch.randn(3, 4)
        model.bias += 1.0
    far = 0.5 * (model(inputs) - before).square().sum(1).mean()
    given = MergeInputs(Structure(maps=maps), named_weights(model), snapshot, **known)
    assert quadratic_forgetting(given) == pytest.approx(float(far), rel=0.1)
    assert quadratic_forgetting(given, snapshot) == 0.0


def test_of_an_adapter_it_is_that_of_the_update_as_a_matrix():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(tiny_llama(), config)
    pairs = find_lora_pairs(model)
    batches = [{"input_ids": torch.randint(0, 16, (4, 12))} for _ in range(4)]
    factors = {pair.a: pair.b for pair in pairs}
    layers = {pair.a: pair.module for pair in pairs}
    maps, known = known_of(model, batches, factors=factors, layers=layers)
    snapshot = weights_of(model)
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            weight += 0.1 * torch.randn_like(weight) if "lora" in name else 0.0
    live = weights_of(model)
    given = MergeInputs(Structure(maps=maps, lora_pairs=pairs), live, snapshot, **known)
    total = 0.0
    for one in maps:
        pair = next(pair for pair in pairs if pair.a == one.weight)
        new, old = pair.factors(live), pair.factors(snapshot)
        d = new.scale * (new.b @ new.a) - old.scale * (old.b @ old.a)
        x, g = (known[side][one.name] for side in ("old_moments", "old_output_moments"))
        x, g = (side.times(torch.eye(side.width)) for side in (x, g))
        total += 0.5 * float(torch.trace(g @ d @ x @ d.T)) * known["curvature_mean"]
    assert quadratic_forgetting(given) == pytest.approx(total, rel=1e-4)


def test_the_more_of_the_old_a_merge_keeps_the_less_is_forgotten():
    def run(plasticity):
        torch.manual_seed(0)
        callback, model = RecallCallback(every=1.0, plasticity=plasticity), Plain()
        for task in range(2):
            quiet_trainer(callback).fit(model, loader(task))
        return callback.history[-1]["quadratic_forgetting"]

    some, little = run(0.95), run(0.5)
    assert 0 < little["merged"] < some["merged"] < some["live"]


def test_without_curvature_nothing_is_estimated():
    callback = RecallCallback(rule="importance", every=1.0)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert "quadratic_forgetting" not in callback.history[0]
    assert callback.estimates == {}


def test_a_layer_that_is_fitted_anew_does_not_count():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    maps, known = known_of(model, [(torch.randn(8, 3), torch.randint(0, 2, (8,)))])
    snapshot = weights_of(model)
    with torch.no_grad():
        model[2].weight += torch.randn(2, 4)
    given = MergeInputs(Structure(maps=maps), named_weights(model), snapshot, **known)
    assert quadratic_forgetting(given) > 0.0
    assert quadratic_forgetting(given, refitted="2") == 0.0
