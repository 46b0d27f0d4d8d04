import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from recall_lightning.measuring.input_moments import input_moments
from recall_lightning.measuring.linear_maps import (
    as_matrix,
    find_linear_maps,
)
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.weights.naming import named_weights


def run(module, batch):
    return module(**batch) if isinstance(batch, dict) else module(batch)


def moments_of(module, *batches, **kwargs):
    maps, _ = find_linear_maps(module)
    return input_moments(module, maps, batches, run, **kwargs)


def with_one(rows):
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def mean_products(rows):
    return rows.T @ rows / len(rows)


def llama(**config):
    config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8} | config
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


@pytest.mark.parametrize("shape", [(7, 4), (2, 3, 4), (2, 3, 5, 4), (4,)])
def test_a_linear_layer_is_measured_on_every_vector_it_is_given(shape):
    inputs = torch.randn(shape)
    found = moments_of(nn.Sequential(nn.Linear(4, 2)), inputs)
    torch.testing.assert_close(
        found["0.weight"].matrix, mean_products(with_one(inputs.reshape(-1, 4)))
    )


def test_batches_add_up_to_the_mean_over_all_inputs():
    one, other = torch.randn(3, 4), torch.randn(9, 4)
    found = moments_of(nn.Sequential(nn.Linear(4, 2, bias=False)), one, other)
    torch.testing.assert_close(found["0.weight"].matrix, mean_products(torch.cat([one, other])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_of_any_precision_are_summed_in_float32(dtype):
    model = nn.Sequential(nn.Linear(4, 2)).to(dtype)
    found = moments_of(model, torch.ones(300, 4, dtype=dtype))["0.weight"]
    assert found.matrix.dtype is torch.float32
    torch.testing.assert_close(found.matrix, torch.ones(5, 5))


def test_autocast_does_not_round_the_sums():
    inputs = torch.randn(64, 4) @ torch.randn(4, 40)
    model = nn.Sequential(nn.Linear(40, 2, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        found = moments_of(model, inputs, full_width=8, rank=4)["0.weight"]
    assert found.factor.dtype is torch.float32
    values, _ = torch.linalg.eigh(mean_products(inputs))
    kept = torch.linalg.eigvalsh(found.factor @ found.factor.T)
    torch.testing.assert_close(kept, values[-4:], rtol=1e-3, atol=1e-4)


class Heads(nn.Module):
    """Two maps that read one tensor, and in some batches each its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        apart = bool((x < 0).any())
        return self.one(x) + self.two(2 * x if apart else x)


def test_maps_that_read_the_same_tensor_share_their_moments(monkeypatch):
    summed, update = [], FullMoments.update
    monkeypatch.setattr(FullMoments, "update", lambda self, x: summed.append(1) or update(self, x))
    maps, _ = find_linear_maps(heads := Heads())
    found = input_moments(heads, maps, [torch.rand(4, 3), torch.rand(4, 3)])
    assert found["one.weight"] is found["two.weight"]
    assert len(summed) == 2  # one a batch


def test_maps_that_read_other_tensors_in_a_later_batch_share_nothing():
    maps, _ = find_linear_maps(heads := Heads())
    batches = [torch.rand(4, 3), torch.randn(4, 3)]
    found = input_moments(heads, maps, batches)
    inputs = torch.cat([batches[0], 2 * batches[1]])
    torch.testing.assert_close(
        found["one.weight"].matrix, mean_products(with_one(torch.cat(batches)))
    )
    torch.testing.assert_close(found["two.weight"].matrix, mean_products(with_one(inputs)))


def test_wide_maps_have_moments_of_low_rank():
    inputs = torch.randn(50, 12)
    found = moments_of(nn.Sequential(nn.Linear(12, 2)), inputs, full_width=11, rank=3)["0.weight"]
    assert found.factor.shape == (3, 13)
    torch.testing.assert_close(found.diagonal, mean_products(with_one(inputs)).diagonal())


def test_padding_is_left_out_on_either_side():
    model, ids = llama(), torch.randint(0, 16, (2, 4))
    padding, ones = torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)
    plain = moments_of(model, {"input_ids": ids, "attention_mask": ones})
    for order in (lambda a, b: [a, b], lambda a, b: [b, a]):
        batch = {
            "input_ids": torch.cat(order(ids, padding), 1),
            "attention_mask": torch.cat(order(ones, padding), 1),
        }
        padded = moments_of(model, batch)
        assert padded.keys() == plain.keys()
        for name, moments in plain.items():
            for key, tensor in moments.state_dict().items():
                torch.testing.assert_close(
                    padded[name].state_dict()[key], tensor, rtol=1e-3, atol=1e-4
                )


def test_an_embedding_counts_its_tokens():
    ids = torch.tensor([[1, 1, 2], [1, 5, 5]])
    counts = moments_of(llama(), {"input_ids": ids})["model.embed_tokens.weight"].counts
    torch.testing.assert_close(counts[:6], torch.tensor([0, 3, 1, 0, 0, 2]) / 6)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 7, 9)),
    "stride, dilation, padding": (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1)), (2, 3, 7, 9)
    ),
    "same": (nn.Conv2d(3, 4, (2, 3), padding="same"), (2, 3, 5, 5)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 5, 5)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    "circular": (nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 5, 5)),
    "no bias": (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 5, 5)),
    "one image": (nn.Conv2d(3, 4, 3), (3, 5, 5)),
    "1-d": (nn.Conv1d(3, 4, 3, stride=2, dilation=2, padding=1), (2, 3, 11)),
    "1-d, replicate": (nn.Conv1d(3, 4, 3, padding=2, padding_mode="replicate"), (2, 3, 6)),
    "1-d, one": (nn.Conv1d(3, 4, 3), (3, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 5)),
    "transposed, stride, dilation, padding": (
        nn.ConvTranspose2d(
            3, 4, (3, 2), stride=(3, 2), dilation=(1, 2), padding=(1, 2), output_padding=(2, 1)
        ),
        (2, 3, 4, 5),
    ),
    "transposed, much padding": (nn.ConvTranspose2d(3, 4, 2, padding=2), (2, 3, 4, 5)),
    "transposed, 1-d, one": (nn.ConvTranspose1d(3, 4, 3, stride=2, bias=False), (3, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_its_matrix_on_unfolded_inputs(case):
    """The moments of the inputs give those of the outputs: E[yyᵀ] = W E[xxᵀ] Wᵀ."""
    layer, shape = CONVOLUTIONS[case]
    model, inputs = nn.Sequential(layer), torch.randn(shape)
    (linear_map,), _ = find_linear_maps(model)
    matrix = as_matrix(linear_map, named_weights(model))
    moments = moments_of(model, inputs)["0.weight"].matrix
    outputs = layer(inputs).detach()
    outputs = outputs if outputs.dim() == layer.weight.dim() else outputs[None]
    outputs = outputs.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(matrix @ moments @ matrix.T, mean_products(outputs))


def test_layers_of_torchs_transformer_are_measured_past_its_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1)
    assert set(moments_of(model, torch.randn(2, 3, 8))) == {
        one.name for one in find_linear_maps(model)[0]
    }


def attention_inputs(model, *inputs):
    """What attention multiplies by its four weights, by formula: one head, no mask."""
    query, key, value = inputs
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip(
            inputs, model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3), strict=True
        )
    )
    attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return [query, key, value, attended]


@pytest.mark.parametrize("is_self", [True, False])
def test_attention_is_measured_on_what_each_projection_multiplies(is_self):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 1, batch_first=True)
    nn.init.normal_(model.in_proj_bias)
    query, key, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    given = (query,) * 3 if is_self else (query, key, value)
    maps, _ = find_linear_maps(model)
    found = input_moments(model, maps, [given], lambda m, batch: m(*batch))
    for one, inputs in zip(maps, attention_inputs(model, *given), strict=True):
        expected = mean_products(with_one(inputs.detach().reshape(-1, 4)))
        torch.testing.assert_close(found[one.name].matrix, expected)


@pytest.mark.parametrize("batch_first", [True, False])
def test_query_key_and_value_of_self_attention_share_their_moments(batch_first):
    x = torch.randn(2, 3, 4)
    model = nn.MultiheadAttention(4, 1, batch_first=batch_first)
    maps, _ = find_linear_maps(model)
    once = input_moments(model, maps, [(x, x, x)], lambda m, batch: m(*batch))
    query, key, value, output = (once[one.name] for one in maps)
    assert query is key
    assert query is value
    assert output is not query
    apart = input_moments(model, maps, [(x, x, x), (x, -x, x + 1)], lambda m, batch: m(*batch))
    expected = [mean_products(with_one(torch.cat([x, y]).flatten(0, 1))) for y in (x, -x, x + 1)]
    for one, moments in zip(maps[:3], expected, strict=True):
        torch.testing.assert_close(apart[one.name].matrix, moments)


def test_padding_of_attention_is_left_out_whatever_comes_first():
    torch.manual_seed(0)
    inputs, mask = torch.randn(3, 3, 8), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    found = []
    for batch_first in (True, False):
        torch.manual_seed(1)
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        maps, _ = find_linear_maps(model)

        def run_masked(module, batch, first=batch_first):
            x = batch["x"] if first else batch["x"].transpose(0, 1)
            return module(x, src_key_padding_mask=batch["attention_mask"] == 0)

        batch = {"x": inputs, "attention_mask": mask}
        found.append(input_moments(model, maps, [batch], run_masked))
    query, output = "self_attn.in_proj_weight[0:8]", "self_attn.out_proj.weight"
    expected = mean_products(with_one(inputs[mask != 0]))
    torch.testing.assert_close(found[0][query].matrix, expected)
    for name in (query, output):
        torch.testing.assert_close(found[1][name].matrix, found[0][name].matrix)


def test_a_layer_used_twice_has_the_inputs_of_both():
    shared = nn.Linear(3, 3, bias=False)
    inputs = torch.randn(5, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    between = shared(inputs).relu().detach()
    torch.testing.assert_close(
        moments_of(model, inputs)["0.weight"].matrix, mean_products(torch.cat([inputs, between]))
    )


def test_two_layers_of_one_weight_are_one_map():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    inputs = torch.randn(5, 3)
    model = nn.Sequential(first, second)
    (one,), others = find_linear_maps(model)
    assert (one.modules, others) == (("0", "1"), {})
    torch.testing.assert_close(
        moments_of(model, inputs)["0.weight"].matrix,
        mean_products(torch.cat([inputs, first(inputs).detach()])),
    )


def test_a_lora_pair_is_one_map_on_the_layers_inputs():
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5)
    base = llama()
    model = peft.get_peft_model(copy.deepcopy(base), adapter)
    factors = {pair.a: pair.b for pair in find_lora_pairs(model)}
    maps, others = find_linear_maps(model, factors)
    assert {one.weight: one.second_factor for one in maps} == factors
    assert others == {}
    batch = {"input_ids": torch.randint(0, 16, (2, 4))}
    found = input_moments(model, maps, [batch], run)
    of_base = moments_of(base, batch)  # a fresh adapter adds nothing
    for name, moments in found.items():
        own = name.removeprefix("base_model.model.").replace("lora_A.default.", "")
        torch.testing.assert_close(moments.matrix, of_base[own].matrix)


def test_checkpointed_and_compiled_models_are_measured_alike():
    model, batch = llama(), {"input_ids": torch.randint(0, 16, (2, 4))}
    plain = moments_of(model, batch)
    model.gradient_checkpointing_enable()
    for own in (model.train(), torch.compile(model, backend="eager")):
        own(**batch)
        found = moments_of(own, batch)
        assert found.keys() == plain.keys()
        for name, moments in plain.items():
            for key, tensor in moments.state_dict().items():
                torch.testing.assert_close(found[name].state_dict()[key], tensor)


def test_the_model_is_as_before():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model.train()
    model[3].eval()
    model(torch.randn(5, 3)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    state, inputs = copy.deepcopy(model.state_dict()), torch.randn(5, 3)
    rng = torch.get_rng_state()
    moments_of(model, inputs)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(map(torch.equal, gradients, (p.grad for p in model.parameters())))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [child.training for child in model] == [True, True, True, False]
    assert not any(child._forward_pre_hooks for child in model.modules())


def test_a_map_that_computes_nothing_is_missing_and_no_input_is_none():
    model = nn.Sequential(nn.Linear(3, 3))
    model.unused = nn.Linear(3, 3)
    maps, _ = find_linear_maps(model)
    found = input_moments(model, maps, [torch.ones(2, 3)], lambda m, b: m[0](b))
    assert set(found) == {"0.weight"}
    assert moments_of(model[:1], torch.zeros(0, 3)) == {}
