import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import OSFConfig, get_peft_model
from torch import nn

from recall_lightning.methods import OrthogonalSubspace
from recall_lightning.methods.osf import leading
from tests.support.baseline_tools import assert_same, trained_with_a_break, weights_of
from tests.support.tiny_streams import counting, loss_of, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer

MAPS = ["net.0.weight", "net.2.weight", "net.4.weight"]


class Sgd(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Decayed(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.3)


def fit(model, *callbacks, tasks=1, **kwargs):
    torch.manual_seed(0)
    for task in range(tasks):
        quiet_trainer(*callbacks, **kwargs).fit(model, loader(task))
    return weights_of(model)


def test_leading_directions_stay_under_adam_and_weight_decay():
    model = Decayed()
    before = weights_of(model)
    after = fit(model, OrthogonalSubspace(0.5))
    for name in MAPS:
        left, right = leading(before[name], 0.5)
        assert left.shape[1] == min(before[name].shape) // 2
        torch.testing.assert_close(left.T @ after[name], left.T @ before[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(after[name] @ right, before[name] @ right, atol=1e-5, rtol=0)
        assert not torch.equal(after[name], before[name])


def test_a_step_of_sgd_is_the_projected_gradient():
    plain, projected = Sgd(), Sgd()
    projected.load_state_dict(plain.state_dict())
    before = weights_of(plain)
    free, kept = (
        fit(model, *callbacks, limit_train_batches=1)
        for model, callbacks in ((plain, []), (projected, [OrthogonalSubspace(0.25)]))
    )
    for name in before:
        move = free[name] - before[name]
        if name in MAPS:
            left, right = leading(before[name], 0.25)
            move = (torch.eye(len(left)) - left @ left.T) @ move
            move = move @ (torch.eye(len(right)) - right @ right.T)
        torch.testing.assert_close(kept[name] - before[name], move, atol=1e-6, rtol=1e-4)


def test_pefts_layer_moves_in_the_same_subspace():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6, bias=False))
    before = net[0].weight.detach().clone()
    adapted = get_peft_model(net, OSFConfig(effective_rank=3, target_modules=["0"]))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    moved = adapted.merge_and_unload()[0].weight.detach() - before
    left, right = leading(before, 0.5)
    assert moved.norm() > 1e-3
    torch.testing.assert_close(left.T @ moved, torch.zeros(3, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved @ right, torch.zeros(6, 3), atol=1e-5, rtol=0)


def test_a_model_from_random_weights_is_free_in_its_first_task():
    one, other = Plain(), Plain()
    other.load_state_dict(one.state_dict())
    callback = OrthogonalSubspace(0.9, from_first_task=False)
    assert_same(fit(one), fit(other, callback), rtol=0, atol=0)


def test_a_language_model_forgets_less_under_it():
    def forgotten(*callbacks):
        module = tiny_llama_module(3e-3, 1)
        quiet_trainer(*callbacks, max_epochs=10).fit(module, counting(3))
        return loss_of(module, 1)

    assert forgotten(OrthogonalSubspace(0.75)) < 0.7 * forgotten()


@pytest.mark.parametrize("stop_after", [5, 12])
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path, stop_after):
    whole, resumed, _ = trained_with_a_break(
        lambda: OrthogonalSubspace(task_epochs=1), tmp_path / "mid.ckpt", stop_after
    )
    assert_same(whole, resumed, rtol=0, atol=0)


def test_what_a_head_has_grown_by_is_free():
    model = Plain()
    callback = OrthogonalSubspace(0.9)
    fit(model, callback)
    head = nn.Linear(16, 4)
    with torch.no_grad():
        head.weight[:2], head.bias[:2] = model.net[4].weight, model.net[4].bias
    model.net[4] = head
    before = head.weight.detach().clone()
    quiet_trainer(callback).fit(model, loader(1))
    _, right = leading(before[:2], 0.9)
    moved = head.weight.detach() - before
    torch.testing.assert_close(moved[:2] @ right, torch.zeros(2, 2), atol=1e-5, rtol=0)
    assert (moved[2:] @ right).abs().min() > 1e-4


def test_adapters_and_models_without_maps_are_refused():
    with pytest.raises(MisconfigurationException, match=r"lora_A\.default\.weight is an adapter's"):
        quiet_trainer(OrthogonalSubspace()).fit(tiny_llama_module(lora={}), counting(1))
    model = Plain()
    for layer in (0, 2, 4):
        model.net[layer].weight.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="found no linear map that Plain trains"):
        quiet_trainer(OrthogonalSubspace()).fit(model, loader(0))


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_bad_arguments_are_refused(fraction):
    with pytest.raises(MisconfigurationException, match=f"fraction={fraction} must lie between"):
        OrthogonalSubspace(fraction)
