import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from recall_lightning.measuring.linear_maps import (
    as_matrix,
    find_linear_maps,
    from_matrix,
)
from recall_lightning.merging.lora.pairs import find_lora_pairs
from recall_lightning.weights.naming import named_weights


def with_one(rows):
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def llama(**config):
    config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8} | config
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def test_fused_projections_stored_input_first_are_one_map():
    config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    maps, others = find_linear_maps(model)
    (fused,) = (one for one in maps if one.weight.endswith("c_attn.weight"))
    assert (fused.kind, fused.width) == ("transposed", 9)
    inputs = torch.randn(5, 8)
    matrix = as_matrix(fused, named_weights(model))
    assert matrix.shape == (24, 9)
    expected = model.transformer.h[0].attn.c_attn(inputs)
    torch.testing.assert_close(with_one(inputs) @ matrix.T, expected)
    assert "transformer.wte.weight" in others


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "a convolution of each channel"),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), "a transposed convolution of groups"),
        (nn.Conv3d(2, 2, 3), "Conv3d is no linear map"),
        (nn.Bilinear(2, 2, 2), "Bilinear is no linear map"),
        (nn.EmbeddingBag(4, 2, mode="max"), "takes the largest of a bag"),
        (nn.LayerNorm((2, 2)), "LayerNorm is no linear map"),
        (OPTLearnedPositionalEmbedding(4, 2), "OPTLearnedPositionalEmbedding looks up its own way"),
    ],
)
def test_other_layers_are_reported_with_the_reason(layer, reason):
    maps, others = find_linear_maps(nn.Sequential(layer))
    assert maps == []
    assert reason in others["0.weight"]


def test_attention_is_a_map_each_of_query_key_value_and_output():
    maps, others = find_linear_maps(nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)}))
    packed = {f"attention.in_proj_weight[{rows}]" for rows in ("0:4", "4:8", "8:12")}
    assert {one.name for one in maps} == packed | {"attention.out_proj.weight"}
    assert others == {}


def test_of_attention_with_weights_apart_the_common_bias_is_no_map():
    maps, others = find_linear_maps(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
    found = {one.name: (one.bias, one.width) for one in maps}
    apart = {"q_proj_weight": 4, "k_proj_weight": 3, "v_proj_weight": 5}
    assert found == {"out_proj.weight": ("out_proj.bias", 5)} | {
        n: (None, w) for n, w in apart.items()
    }
    assert others == {}


def test_the_layer_that_attention_takes_is_a_layer_where_it_is_called():
    layer = nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4)
    (one,), _ = find_linear_maps(nn.Sequential(layer))
    assert one.kind == "linear"


def test_parametrized_attention_is_reported():
    attention = nn.MultiheadAttention(4, 2)
    parametrizations.weight_norm(attention, "in_proj_weight")
    maps, others = find_linear_maps(attention)
    assert not any("in_proj" in one.weight for one in maps)
    assert "parametrizations.in_proj_weight.original1" in others


def test_recurrent_layers_are_a_map_of_inputs_and_one_of_hidden_states():
    maps, others = find_linear_maps(nn.LSTM(3, 4, bidirectional=True, proj_size=2))
    found = {one.name: (one.bias, one.width) for one in maps}
    assert found["weight_ih_l0"] == ("bias_ih_l0", 4)
    assert found["weight_hh_l0_reverse"] == ("bias_hh_l0_reverse", 3)
    assert found["weight_hr_l0"] == (None, 4)
    assert others == {}


def test_a_weight_that_no_layer_owns_is_reported():
    model = nn.Sequential(nn.Linear(3, 3))
    model.own = nn.Parameter(torch.ones(3, 3))
    assert find_linear_maps(model)[1] == {"own": "no module that is a linear map owns it"}


def test_a_weight_tied_to_an_embedding_is_reported_and_measured_by_neither():
    maps, others = find_linear_maps(llama(tie_word_embeddings=True))
    assert "embed_tokens" not in " ".join(one.weight for one in maps)
    assert "shared by two different maps" in others["model.embed_tokens.weight"]


def test_a_bias_of_two_layers_makes_them_no_maps_of_their_own():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.bias = first.bias
    maps, others = find_linear_maps(nn.Sequential(first, second))
    assert maps == []
    assert set(others) == {"0.weight", "1.weight"}


def test_a_frozen_bias_is_no_input_and_a_frozen_weight_no_map():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    (one,), others = find_linear_maps(model)
    assert (one.weight, one.bias, one.width, others) == ("0.weight", None, 3, {})


def test_a_parametrized_weight_is_reported():
    maps, others = find_linear_maps(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))))
    assert maps == []
    assert "0.parametrizations.weight.original1" in others


def test_lora_updates_of_other_layers_are_reported():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Embedding(4, 2))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "1"]))
    factors = {pair.a: pair.b for pair in find_lora_pairs(model)}
    maps, others = find_linear_maps(model, factors)
    assert maps == []
    assert set(others) == set(factors)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 4),
        nn.Conv2d(3, 4, 2),
        nn.ConvTranspose2d(3, 4, (2, 3)),
        nn.Embedding(3, 4),
        nn.EmbeddingBag(3, 4),
    ],
)
def test_the_matrix_goes_back_to_the_tensors_it_came_from(layer):
    (linear_map,), _ = find_linear_maps(nn.Sequential(layer))
    tensors = named_weights(nn.Sequential(layer))
    back = from_matrix(linear_map, as_matrix(linear_map, tensors), tensors)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_packed_map_is_its_rows_and_goes_back_to_them():
    attention = nn.MultiheadAttention(4, 2)
    nn.init.normal_(attention.in_proj_bias)
    tensors = named_weights(attention)
    first, key, *_ = find_linear_maps(attention)[0]
    matrix = as_matrix(key, tensors)
    torch.testing.assert_close(matrix[:, :4], attention.in_proj_weight[4:8].detach())
    back = from_matrix(key, matrix + 1, tensors)
    expected = attention.in_proj_bias.detach().clone()
    expected[4:8] += 1
    torch.testing.assert_close(back["in_proj_bias"], expected)
    assert torch.equal(as_matrix(first, back), as_matrix(first, tensors))


def test_a_module_that_is_saved_whole_beside_an_adapter_is_a_map():
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    config = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"])
    adapted = peft.get_peft_model(net, config)
    saved = "base_model.model.1.modules_to_save.default"
    maps, others = find_linear_maps(adapted)
    assert (f"{saved}.weight", f"{saved}.bias") in [(one.weight, one.bias) for one in maps]
    assert f"{saved}.weight" not in others
