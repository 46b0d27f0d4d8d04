import copy

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from recall_lightning.measuring.curvature import (
    KroneckerFactors,
    kronecker_factors,
    normalised,
)
from recall_lightning.measuring.input_moments import input_moments
from recall_lightning.measuring.linear_maps import find_linear_maps
from recall_lightning.measuring.moments import FullMoments, LowRankMoments
from recall_lightning.merging.structure import Structure
from recall_lightning.weights.naming import named_weights
from tests.support.tiny_models import llama


def run(module, batch):
    return module(batch[0])


def factors_of(module, batches, forward=run, **kwargs):
    maps, _ = find_linear_maps(module)
    return kronecker_factors(module, maps, batches, forward, **kwargs)


def fisher_of(net, inputs, weight):
    """The exact Fisher information of one weight: E over inputs and all labels of ggᵀ, flat."""
    total = 0.0
    for x in inputs:
        log_p = net(x[None]).log_softmax(-1)[0]
        for label in range(len(log_p)):
            gradient = torch.autograd.grad(log_p[label], weight, retain_graph=True)[0].flatten()
            total = total + log_p[label].exp().detach() * torch.outer(gradient, gradient)
    return total / len(inputs)


def test_for_one_input_the_product_is_the_exact_fisher_information():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    x = torch.randn(1, 3)
    batch = (x.expand(20_000, 3), torch.zeros(20_000, dtype=torch.long))
    factors = factors_of(net, [batch])
    for name, layer in (("0.weight", net[0]), ("2.weight", net[2])):
        product = torch.kron(factors.outputs[name].matrix, factors.inputs[name].matrix)
        exact = fisher_of(net, x, layer.weight)
        torch.testing.assert_close(product, exact, atol=0.03 * float(exact.abs().max()), rtol=0.1)


def test_the_curvature_of_a_lora_update_is_that_of_its_layer():
    adapter = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"])
    torch.manual_seed(0)
    base = llama(0)
    model = peft.get_peft_model(copy.deepcopy(base), adapter)
    batch = {"input_ids": torch.randint(0, 64, (4, 6))}
    maps = Structure.of(model).maps
    assert len(maps) == 6

    def forward(module, batch):
        return module(**batch)

    found = kronecker_factors(model, maps, [batch], forward, predictions="classes")
    whole = factors_of(base, [batch], forward, predictions="classes")  # a new adapter adds nothing
    for one in maps:
        own = one.layer.removeprefix("base_model.model.") + ".weight"
        for ours, theirs in ((found.inputs, whole.inputs), (found.outputs, whole.outputs)):
            torch.testing.assert_close(ours[one.weight].matrix, theirs[own].matrix)


def test_for_binary_targets_the_product_is_the_exact_fisher_information():
    """Of a linear map into Bernoulli units it is diag(p (1 − p)) ⊗ xxᵀ."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2, bias=False), torch.tensor([[1.0, -2.0, 0.5]])
    batch = (x.expand(20_000, 3), torch.tensor([[0.0, 1.0]]).expand(20_000, 2))
    factors = factors_of(net, [batch])
    p = net(x)[0].detach().sigmoid()
    expected = torch.kron(torch.diag(p * (1 - p)), x.T @ x)
    product = torch.kron(factors.outputs["weight"].matrix, factors.inputs["weight"].matrix)
    torch.testing.assert_close(product, expected, atol=0.03, rtol=0.05)
    assert factors.predictions.name == "binary"


@pytest.mark.parametrize(("setting", "curvature"), [("binary", 0.25), ("values", 1.0)])
def test_what_is_predicted_can_be_set(setting, curvature):
    torch.manual_seed(0)
    net = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(net.weight)
    batch = (torch.randn(20_000, 3), torch.zeros(20_000, 2))
    factors = factors_of(net, [batch], predictions=setting)
    found = factors.outputs["weight"].matrix.diagonal()
    torch.testing.assert_close(found, torch.full((2,), curvature), atol=0, rtol=0.05)
    with pytest.raises(ValueError, match=f"set to '{setting}'"):
        factors_of(net, [(batch[0], torch.ones(20_000).long())], predictions=setting)


def test_what_does_not_count_has_no_share_in_the_mean():
    torch.manual_seed(0)
    net = nn.Linear(4, 3, bias=False)
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 1, -100, 2, -100, -100])
    inputs[labels < 0] *= 1000  # there predictions are certain, and nothing would change them
    few = factors_of(net, [(inputs, labels)] * 1000)
    same = factors_of(net, [(inputs[labels >= 0], labels[labels >= 0])] * 1000)
    found, expected = few.outputs["weight"].matrix, same.outputs["weight"].matrix
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.1)


def test_inputs_are_those_of_a_forward_pass_alone():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long)) for _ in range(3)]
    expected = input_moments(net, find_linear_maps(net)[0], batches, run)
    found = factors_of(net, batches).inputs
    for name, moments in expected.items():
        torch.testing.assert_close(found[name].matrix, moments.matrix)


def test_what_is_computed_in_place_does_not_reach_the_gradients_at_outputs():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)]
    apart = [layers[0], nn.ReLU(), layers[2]]
    batch = (torch.randn(64, 4), torch.zeros(64, dtype=torch.long))
    in_place, plain = (factors_of(nn.Sequential(*each), [batch]) for each in (layers, apart))
    for name, moments in plain.outputs.items():
        torch.testing.assert_close(in_place.outputs[name].matrix, moments.matrix)


def test_layers_that_are_computed_again_in_backward_count_once():
    class Checkpointed(nn.Sequential):
        def forward(self, inputs):
            return checkpoint(super().forward, inputs, use_reentrant=False)

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    again = Checkpointed(*plain)
    batches = [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))] * 2
    expected, found = factors_of(plain, batches), factors_of(again, batches)
    for side in ("inputs", "outputs"):
        for name, moments in getattr(expected, side).items():
            torch.testing.assert_close(getattr(found, side)[name].matrix, moments.matrix)


def test_a_convolution_sums_over_its_patches():
    net = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.Flatten(), nn.Linear(8, 3))
    factors = factors_of(net, [(torch.randn(6, 1, 4, 4), torch.zeros(6, dtype=torch.long))])
    assert factors.outputs["0.weight"].matrix.shape == (2, 2)
    assert factors.inputs["0.weight"].width == 5


def test_a_language_model_has_factors_of_its_embedding_too():
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(11, (2, 5))
    factors = factors_of(model, [ids], lambda module, batch: module(input_ids=batch))
    maps, _ = find_linear_maps(model)
    assert set(factors.outputs) == {one.weight for one in maps}
    assert factors.outputs["model.embed_tokens.weight"].matrix.shape == (8, 8)


def test_a_wide_side_keeps_a_rank_and_a_diagonal():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    labelled = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    found = factors_of(net, [labelled], full_width=7, rank=3)  # three classes: gradients of rank 3
    whole = factors_of(net, [labelled]).outputs["0.weight"].matrix
    kept = found.outputs["0.weight"]
    torch.testing.assert_close(kept.diagonal, whole.diagonal())
    torch.testing.assert_close(kept.factor.T @ kept.factor, whole, rtol=1e-3, atol=1e-5)
    assert isinstance(found.inputs["0.weight"], FullMoments)
    assert isinstance(found.inputs["1.weight"], LowRankMoments)
    assert isinstance(found.outputs["1.weight"], FullMoments)


@pytest.mark.parametrize("full_width", [512, 1])
def test_the_noise_at_outputs_is_how_far_few_samples_are_from_all(full_width):
    torch.manual_seed(0)
    net, classes = nn.Linear(3, 4, bias=False), torch.zeros(2, dtype=torch.long)

    def outputs_of(batches, seed, **kwargs):
        given = [(torch.randn(2, 3), classes) for _ in range(batches)]
        return factors_of(net, given, seed=seed, **kwargs).outputs["weight"]

    true = outputs_of(500, 0).matrix
    some = [outputs_of(4, seed, full_width=full_width, rank=4) for seed in range(60)]
    ones = torch.eye(4)
    squares = [(each.times(ones) - true).square().sum() for each in some]
    expected = torch.stack([each.noise for each in some]).mean()
    assert float(expected) == pytest.approx(float(torch.stack(squares).mean()), rel=0.25)


def test_the_noise_of_one_sample_is_all_of_it():
    outputs = factors_of(nn.Linear(3, 4), [(torch.randn(1, 3), torch.zeros(1).long())]).outputs
    assert outputs["weight"].shrinkage == 1.0


def test_unknown_predictions_have_inputs_alone():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    unknown = factors_of(net, [(torch.randn(6, 4), ["text"] * 6)])
    assert not unknown.outputs
    assert "no targets that fit" in unknown.unknown
    assert set(unknown.inputs) == {"0.weight", "1.weight"}


def test_a_seed_gives_the_same_factors_and_the_model_is_as_before():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    batch = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    one, other = (factors_of(net, [batch], seed=3) for _ in range(2))
    assert torch.equal(one.outputs["2.weight"].matrix, other.outputs["2.weight"].matrix)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(weight.grad is None for weight in named_weights(net).values())
    assert net.training


def test_normalised_curvature_has_mean_one_over_the_model():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batch = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    factors = normalised(factors_of(net, [batch]))
    diagonals = [
        torch.outer(factors.outputs[n].matrix.diagonal(), factors.inputs[n].matrix.diagonal())
        for n in factors.outputs
    ]
    mean = torch.cat([diagonal.flatten() for diagonal in diagonals]).mean()
    assert float(mean) == pytest.approx(1.0, rel=1e-5)
    assert normalised(KroneckerFactors()) == KroneckerFactors()


def test_a_map_that_is_not_finite_does_not_change_what_others_are_divided_by():
    def scaled(value):
        bad = FullMoments(torch.full((2, 2), value), torch.ones(()))
        good = FullMoments(torch.eye(2), torch.ones(()))
        factors = KroneckerFactors({"a": good, "b": bad}, {"a": good, "b": bad})
        return normalised(factors).outputs["a"].matrix

    torch.testing.assert_close(scaled(torch.nan), torch.eye(2))


def test_curvature_that_is_next_to_nothing_is_not_known():
    def of(size):
        moments = {"a": FullMoments(size * torch.eye(2), torch.ones(()))}
        return normalised(KroneckerFactors(moments, moments)).outputs

    assert of(1e-18)["a"].matrix.isfinite().all()
    assert not of(1e-21)  # its square is smaller than a float32 has an inverse of


def test_checkpoints_that_cannot_be_differentiated_leave_inputs_and_say_why():
    class Reentrant(nn.Sequential):
        def forward(self, inputs):
            return self[2](checkpoint(self[1], self[0](inputs), use_reentrant=True))

    batch = (torch.randn(6, 4), torch.zeros(6, dtype=torch.long))
    net = Reentrant(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    factors = factors_of(net, [batch])
    assert set(factors.inputs) == {"0.weight", "1.weight", "2.weight"}
    assert not factors.outputs
    assert "use_reentrant" in factors.unknown


def test_layers_with_outputs_of_their_own_kind_are_left_out():
    class Pair(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs), None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Pair(4, 8), nn.Linear(8, 3)

        def forward(self, inputs):
            return self.b(self.a(inputs)[0])

    factors = factors_of(Net(), [(torch.randn(6, 4), torch.zeros(6, dtype=torch.long))])
    assert set(factors.outputs) == {"b.weight"}
    assert set(factors.inputs) == {"a.weight", "b.weight"}


def test_a_bias_does_not_count_as_width():
    net = nn.Linear(8, 3)
    batch = (torch.randn(6, 8), torch.zeros(6, dtype=torch.long))
    assert set(factors_of(net, [batch], full_width=8).outputs) == {"weight"}


class Twice(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


def test_a_module_used_twice_has_the_curvature_of_both_uses():
    shared = nn.Linear(4, 4)
    once, twin = Twice(shared, shared), Twice(shared, copy.deepcopy(shared))
    twin.head = once.head
    batch = torch.randn(16, 4), torch.randn(16, 2)
    one, two = (kronecker_factors(m, find_linear_maps(m)[0], [batch]) for m in (once, twin))
    name, other = "first.weight", "second.weight"
    both = two.outputs[name].matrix + two.outputs[other].matrix
    torch.testing.assert_close(one.outputs[name].matrix, both)
    mean = (two.inputs[name].matrix + two.inputs[other].matrix) / 2
    torch.testing.assert_close(one.inputs[name].matrix, mean)
    assert other not in one.outputs


class Groups(nn.Module):
    """A convolution of two groups: one layer, or a layer each."""

    def __init__(self, together):
        super().__init__()
        torch.manual_seed(0)
        whole, self.head = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 3)
        self.whole = whole if together else None
        self.parts = nn.ModuleList(nn.Conv2d(2, 3, 3) for _ in range(0 if together else 2))
        given = zip(self.parts, whole.weight.chunk(2), whole.bias.chunk(2), strict=False)
        for part, weight, bias in given:
            part.weight.data.copy_(weight)
            part.bias.data.copy_(bias)

    def forward(self, x):
        if self.whole is not None:
            return self.head(self.whole(x).tanh().mean((2, 3)))
        parts = [part(half) for part, half in zip(self.parts, x.chunk(2, 1), strict=True)]
        return self.head(torch.cat(parts, 1).tanh().mean((2, 3)))


def test_groups_of_a_convolution_are_measured_as_layers_of_their_own():
    torch.manual_seed(0)
    batch = (torch.randn(20, 4, 6, 6), torch.zeros(20, dtype=torch.long))
    together, apart = (factors_of(Groups(is_one), [batch]) for is_one in (True, False))
    for name, part in (("whole.weight[0:3]", "0"), ("whole.weight[3:6]", "1")):
        for found, expected in (
            (together.inputs, apart.inputs),
            (together.outputs, apart.outputs),
        ):
            torch.testing.assert_close(found[name].matrix, expected[f"parts.{part}.weight"].matrix)
