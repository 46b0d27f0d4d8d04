import copy
import warnings

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, get_peft_model
from torch import nn

from recall_lightning.methods import KfacPenalty, UpdateConsolidation
from recall_lightning.methods.map_curvature import KroneckerCurvature, curvature_from
from tests.support.baseline_tools import (
    added_gradients,
    assert_same,
    autograd,
    trained_with_a_break,
    weights_of,
)
from tests.support.tiny_streams import counting, loss_of, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer

BOTH = pytest.mark.parametrize("method", [UpdateConsolidation, KfacPenalty])


class Adapted(Plain):
    """Under adapters of scale 2, and with one trained linear map beside them."""

    def __init__(self):
        super().__init__()
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], modules_to_save=["4"])
        self.net = get_peft_model(self.net, config)

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Attends(nn.Module):
    """Has three maps in one weight."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 1), nn.Linear(4, 4)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        steps = x.unflatten(1, (2, 4)).transpose(0, 1)
        return self.head(self.attention(steps, steps, steps)[0].sum(0))


class Attending(Plain):
    def __init__(self):
        super().__init__(Attends())


def dense(curvature):
    """F as a function of a difference: its quadratic form."""
    if isinstance(curvature, KroneckerCurvature):
        outputs, inputs = curvature.outputs.matrix, curvature.inputs.matrix
        return lambda d: torch.trace(outputs @ d @ inputs @ d.T) / curvature.tasks
    return lambda d: (curvature.diagonal * d**2).sum()


def written_out(callback, start):
    """strength/2 · Σ vec(W − W*)ᵀ F vec(W − W*), with W = 2 BA of adapters."""
    curvature = copy.deepcopy(callback.curvature)

    def matrices(weights):
        for name in curvature:
            if "lora_B" in name:
                yield name, 2 * weights[name] @ weights[name.replace("lora_B", "lora_A")]
            else:
                whole, _, packed = name.partition("[")
                rows = slice(*map(int, packed[:-1].split(":"))) if packed else slice(None)
                bias = weights[whole.removesuffix("weight") + "bias"]
                yield name, torch.cat([weights[whole][rows], bias[rows, None]], 1)

    def penalty(weights):
        then = dict(matrices(start))
        return (
            callback.strength
            / 2
            * sum(dense(curvature[name])(now - then[name]) for name, now in matrices(weights))
        )

    return penalty


@BOTH
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("model", [Plain, Adapted, Attending])
def test_what_is_added_is_the_gradient_of_the_written_out_penalty(method, accumulate, model):
    torch.manual_seed(0)
    callback, model = method(30.0, batches=4, from_first_task=False), model()
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    penalty = written_out(callback, weights_of(model))
    kwargs = {"accumulate_grad_batches": accumulate}
    for extra, weights in added_gradients(callback, model, loader(2), **kwargs):
        expected = autograd(penalty, {n: weights[n] for n in weights})
        assert_same(extra, {n: expected[n] for n in extra}, atol=1e-5, rtol=1e-3)


@BOTH
def test_every_map_is_measured_and_tasks_add_up_with_decay(method):
    measured, model = [], Adapted()

    class Watched(method):
        def measure(self, *given):
            measured.append(super().measure(*given)[0])
            return measured[-1], None

    callback = Watched(0.0, batches=4, from_first_task=False, decay=0.5)
    for task in range(2):
        quiet_trainer(callback).fit(model, loader(task))
    assert len(callback.curvature) == 3
    for name, curvature in callback.curvature.items():
        first, second = (task[name] for task in measured)
        if method is KfacPenalty:  # one product stands for the sum
            inputs = 0.5 * first.inputs.matrix + second.inputs.matrix
            outputs = 0.5 * first.outputs.matrix + second.outputs.matrix
            expected = outputs @ torch.ones(curvature.shape) @ inputs / 1.5
        else:
            expected = 0.5 * first.diagonal + second.diagonal
        torch.testing.assert_close(curvature.times(torch.ones(curvature.shape)), expected)


def test_products_of_equal_tasks_sum_up():
    torch.manual_seed(0)
    callback, model = KfacPenalty(0.0, batches=4, from_first_task=False), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    curvature = callback.curvature["net.0.weight"]
    difference = torch.randn(curvature.shape)
    twice = curvature.plus(curvature, decay=1.0)
    torch.testing.assert_close(twice.times(difference), 2 * curvature.times(difference))
    faded = curvature.plus(curvature, decay=0.0)
    torch.testing.assert_close(faded.times(difference), curvature.times(difference))


@BOTH
def test_a_factored_difference_costs_what_the_whole_one_does(method):
    torch.manual_seed(0)
    callback, model = method(0.0, batches=4, from_first_task=False), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    curvature = callback.curvature["net.2.weight"]
    left, right, b, a = (torch.randn(s) for s in ((16, 4), (4, 17), (16, 2), (2, 17)))
    of_b, of_a = curvature.of_factors(left, right, b, a)
    product = curvature.times(left @ right)
    torch.testing.assert_close((of_b, of_a), (product @ a.T, b.T @ product))


@BOTH
def test_state_restores_curvature(method):
    callback, model = method(0.0, batches=4, from_first_task=False), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    for curvature in callback.curvature.values():
        restored, one = curvature_from(curvature.state_dict()), torch.ones(curvature.shape)
        assert torch.equal(restored.times(one), curvature.times(one))


@BOTH
@pytest.mark.parametrize("fresh_per_task", [False, True])
def test_an_adapter_forgets_less_under_it(method, fresh_per_task):
    def forgotten(strength):
        model = tiny_llama_module(2e-2, 1, {"fresh_per_task": fresh_per_task})
        callback = method(strength, from_first_task=False)
        for step in (3, 5):
            quiet_trainer(callback, max_epochs=20).fit(model, counting(step))
        return loss_of(model, 3)

    assert forgotten(100.0) < 0.7 * forgotten(0.0)


@BOTH
def test_before_the_first_task_a_language_model_writes_what_it_knows(method):
    def after_first(strength):
        model = tiny_llama_module(1e-2, 1, {})
        callback = method(strength, batches=4)
        quiet_trainer(callback, max_epochs=4).fit(model, counting(3))
        return loss_of(model, 1)

    assert after_first(1e4) < 0.7 * after_first(0.0)


@BOTH
def test_other_models_are_said_to_go_unprotected_in_their_first_task(method):
    with pytest.warns(UserWarning, match="does not protect what the model knows before its first"):
        added = added_gradients(method(), Plain(), loader(0))
    assert not any(bool(value.any()) for extra, _ in added for value in extra.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*does not protect.*")
        quiet_trainer(method(from_first_task=False)).fit(Plain(), loader(0))


@BOTH
def test_another_run_forgets_the_last_ones_curvature(method):
    callback = method(task_epochs=1, from_first_task=False)
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    added = added_gradients(callback, Plain(), loader(0), max_epochs=1)
    assert not any(bool(value.any()) for extra, _ in added for value in extra.values())


@BOTH
@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(
    method, tmp_path, stop_after
):
    callbacks = []

    def make():
        callbacks.append(method(10.0, batches=4, task_epochs=1, from_first_task=False))
        return callbacks[-1]

    whole, resumed, _ = trained_with_a_break(make, tmp_path / "mid.ckpt", stop_after, Adapted)
    assert_same(whole, resumed, rtol=0, atol=0)
    one, other = ({n: c.state_dict() for n, c in each.curvature.items()} for each in callbacks)
    assert one.keys() == other.keys()
    for name in one:
        assert_same(one[name], other[name], rtol=0, atol=0)


@BOTH
def test_what_a_head_has_grown_by_is_free(method):
    model = Plain()
    callback = method(100.0, batches=4, from_first_task=False)
    quiet_trainer(callback).fit(model, loader(0))
    head = nn.Linear(16, 3)
    with torch.no_grad():
        head.weight[:2], head.bias[:2] = model.net[4].weight, model.net[4].bias
    model.net[4] = head
    added = added_gradients(callback, model, loader(1))
    assert not any(bool(extra["net.4.weight"][2].any()) for extra, _ in added)
    assert any(bool(extra["net.4.weight"][:2].any()) for extra, _ in added)


@BOTH
def test_maps_that_changed_are_said_to_go_unprotected(method):
    model = Plain()
    callback = method(batches=4, from_first_task=False)
    quiet_trainer(callback).fit(model, loader(0))
    model.net[2], model.net[4] = nn.Linear(16, 12), nn.Linear(12, 2)
    with pytest.warns(UserWarning, match=r"no longer protects net\.2\.weight, net\.4\.weight: "):
        quiet_trainer(callback).fit(model, loader(1))


def test_too_wide_maps_are_named():
    with pytest.warns(UserWarning, match=r"does not protect net\.2\.weight, net\.4\.weight: wider"):
        quiet_trainer(KfacPenalty(width=15, from_first_task=False)).fit(Plain(Wide()), loader(0))


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(8, 15), nn.ReLU(), nn.Linear(15, 16), nn.ReLU(), nn.Linear(16, 2)
        )


def test_other_adapters_are_refused():
    model = Plain()
    config = LoraConfig(r=2, target_modules=["0"], use_dora=True)
    model.net = get_peft_model(model.net, config)
    with pytest.raises(MisconfigurationException, match=r"KfacPenalty: .*DoRA"):
        quiet_trainer(KfacPenalty()).fit(model, loader(0))


@BOTH
def test_bad_arguments_are_refused(method):
    with pytest.raises(MisconfigurationException, match="decay=2"):
        method(decay=2)
    with pytest.raises(MisconfigurationException, match="batches=0 must be an integer"):
        method(batches=0)
    with pytest.raises(MisconfigurationException, match="predictions='numbers' is no kind"):
        method(predictions="numbers")
