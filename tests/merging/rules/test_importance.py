import pytest
import torch

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.blockwise import merge_snapshots_, weights_of_names
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules import Importance, MergeInputs
from recall_lightning.merging.structure import Structure

BLOCK = Block("layer", 4, 1.0, "layer", ("layer.a", "layer.b", "layer.running_mean"))


def test_each_element_has_its_own_coefficient_and_grows_with_its_importance():
    importance = torch.tensor([0.0, 1.0, 4.0, 1e9])
    inputs = MergeInputs(Structure([BLOCK]), importance={"layer.a": importance})
    found = Importance(0.5).coefficients(inputs)["layer.a"]
    torch.testing.assert_close(found, torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))


def test_what_has_no_importance_has_that_of_the_mean():
    found = Importance(0.5).coefficients(MergeInputs(Structure([BLOCK])))
    assert found == pytest.approx(dict.fromkeys(BLOCK.weights, 1 / 3))


def test_the_merge_is_the_proximal_step_of_a_quadratic_penalty():
    """It minimises ½‖θ − θ_live‖² + λF/2 · (θ − θ_snapshot)², by gradient descent."""
    live, then = {"w": torch.randn(5)}, {"w": torch.randn(5)}
    importance, scale = torch.rand(5), 2.0
    point = live["w"].clone().requires_grad_()
    for _ in range(200):
        penalty = scale * importance * (point - then["w"]).square()
        loss = 0.5 * ((point - live["w"]).square() + penalty).sum()
        (gradient,) = torch.autograd.grad(loss, point)
        point = (point - 0.3 * gradient).detach().requires_grad_()
    block = Block("w", 5, 1.0, "w", ("w",))
    inputs = MergeInputs(Structure([block]), importance={"w": importance})
    given = Importance(scale).coefficients(inputs)
    merge_snapshots_(live, [then], [weights_of_names(given, [block], then)])
    torch.testing.assert_close(live["w"], point.detach(), rtol=1e-4, atol=1e-5)


def test_the_factors_of_an_update_share_the_mean_of_their_importances():
    importance = {"layer.a": torch.tensor([1.0, 2.0]), "layer.b": torch.tensor([6.0])}
    pair = LoraPair("layer", "layer.a", "layer.b", 1.0, 1)
    inputs = MergeInputs(Structure([BLOCK], lora_pairs=[pair]), importance=importance)
    found = Importance(1.0).coefficients(inputs)
    assert found["layer.a"] == found["layer.b"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match=f"scale={scale} must be a positive number"):
        Importance(scale)
