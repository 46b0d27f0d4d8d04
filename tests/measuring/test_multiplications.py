import pytest
import torch
from torch import nn

from recall_lightning.measuring import multiplications as multiplications_module
from recall_lightning.measuring.linear_maps import as_matrix, find_linear_maps
from recall_lightning.measuring.multiplications import multiplications, products_apart
from recall_lightning.weights.naming import named_weights


def attention(**kwargs):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **kwargs).eval()
    for bias in (module.in_proj_bias, module.out_proj.bias):
        if bias is not None:
            nn.init.normal_(bias)
    return module


X, Y = torch.randn(5, 3, 8), torch.randn(4, 3, 8)
PADDING, CAUSAL = torch.zeros(3, 5, dtype=torch.bool), torch.ones(5, 5).triu(1).bool()
PADDING[0, 3:] = True
CALLS = {
    "self": (attention(), (X, X, X), {}),
    "cross": (attention(), (X, Y, Y), {}),
    "three inputs": (attention(), (X, Y, Y + 1), {}),
    "batch first": (attention(batch_first=True), (X.transpose(0, 1),) * 3, {}),
    "padding": (attention(), (X, X, X), {"key_padding_mask": PADDING}),
    "causal": (attention(), (X, X, X), {"attn_mask": CAUSAL, "need_weights": False}),
    "is causal": (
        attention(),
        (X, X, X),
        {"attn_mask": CAUSAL, "need_weights": False, "is_causal": True},
    ),
    "shares of each head": (attention(), (X, X, X), {"average_attn_weights": False}),
    "without bias": (attention(bias=False), (X, X, X), {}),
    "with more keys": (attention(add_bias_kv=True, add_zero_attn=True), (X, X, X), {}),
    "other widths": (attention(kdim=2, vdim=3), (X, X[..., :2], X[..., :3]), {}),
    "no batch": (attention(), (X[:, 0],) * 3, {}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("grad", [True, False])
def test_products_apart_computes_what_attention_does(name, grad):
    module, inputs, options = CALLS[name]
    with torch.set_grad_enabled(grad):
        expected = module(*inputs, **options)
        with products_apart():
            found = module(*inputs, **options)
    torch.testing.assert_close(found, expected)


def test_the_nested_tensors_of_torchs_encoder_are_padded_ones_apart():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=PADDING)
        with products_apart():
            found = encoder(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(found[~PADDING], expected[~PADDING])


@pytest.mark.parametrize("name", CALLS)
def test_each_product_is_told_with_its_map(name):
    module, inputs, options = CALLS[name]
    maps, _ = find_linear_maps(module)
    weights, told = named_weights(module), []

    def seen(one, owner, x, y):
        matrix = as_matrix(one, weights)
        rows = x if one.bias is None else torch.cat([x, torch.ones_like(x[..., :1])], -1)
        if one.bias is not None or module.in_proj_bias is None:
            torch.testing.assert_close(rows @ matrix.T, y)
        told.append(one.name)
        assert owner is module
        return y

    with multiplications(module, maps, seen), products_apart():
        module(*inputs, **options)
    assert told == [one.name for one in maps]


def test_what_is_returned_goes_on_in_place_of_the_product():
    module, inputs, _ = CALLS["self"]
    maps = [one for one in find_linear_maps(module)[0] if one.weight == "out_proj.weight"]
    expected = 2 * module(*inputs)[0]
    with multiplications(module, maps, lambda one, owner, x, y: 2 * y), products_apart():
        torch.testing.assert_close(module(*inputs)[0], expected)


def test_two_who_watch_are_both_told():
    module, inputs, _ = CALLS["self"]
    maps, told = find_linear_maps(module)[0], []

    def seen(one, owner, x, y):
        told.append(one.name)
        return y

    watched = [multiplications(module, maps, seen) for _ in range(2)]
    with watched[0], watched[1], products_apart():
        module(*inputs)
    assert len(told) == 8


def test_weights_that_are_whole_only_while_their_module_computes_are_known(monkeypatch):
    module = attention()
    shards = list(module.parameters())  # kept: a later tensor might have the id of one that is gone
    monkeypatch.setattr(
        multiplications_module, "is_sharded", lambda tensor: any(tensor is one for one in shards)
    )
    maps, told = find_linear_maps(module)[0], []

    def gather(owner, *_):
        owner.in_proj_weight = nn.Parameter(owner.in_proj_weight.detach().clone())
        owner.out_proj.weight = nn.Parameter(owner.out_proj.weight.detach().clone())

    module.register_forward_pre_hook(gather)

    def seen(one, owner, x, y):
        told.append(one.name)
        return y

    with multiplications(module, maps, seen), products_apart():
        module(X, X, X)
        module(X, X, X)
    assert told == 2 * [one.name for one in maps]
