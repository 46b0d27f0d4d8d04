import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recall_lightning.measuring.linear_maps import find_linear_maps
from recall_lightning.measuring.map_check import unlike_linear_maps


def unlike(net, batch):
    return unlike_linear_maps(net, find_linear_maps(net)[0], batch)


def around(layer):
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), layer, nn.Linear(4, 3))


class Scales(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class ChangesInputs(nn.Linear):
    def forward(self, x):
        return super().forward(x + 1)


class ScalesWeight(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight / self.weight.norm(), self.bias)


class Adds(nn.Linear):
    """As an adapter does: what W has to do with it is Wx."""

    def __init__(self):
        super().__init__(4, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


class RotatedLookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.rest = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return functional.linear(self.rest(self.table(ids)).repeat(1, 2), self.table.weight)


class WithoutCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return functional.linear(x, self.layer.weight, self.layer.bias)


class CalledAndUsed(WithoutCall):
    def forward(self, x):
        return super().forward(self.layer(x).relu())


def hooked_layer(register, hook):
    layer = nn.Linear(4, 4)
    getattr(layer, register)(hook)
    return layer


torch.manual_seed(0)
X, IDS = torch.randn(6, 4), torch.randint(0, 5, (6,))
WRONG = {
    "scaled outputs": (around(Scales(4, 4)), X, "2.weight"),
    "other inputs": (around(ChangesInputs(4, 4)), X, "2.weight"),
    "another weight": (around(ScalesWeight(4, 4)), X, "2.weight"),
    "a hook": (
        around(hooked_layer("register_forward_hook", lambda m, x, y: 2 * y)),
        X,
        "2.weight",
    ),
    "no call": (WithoutCall(), X, "layer.weight"),
    "a call and another use": (CalledAndUsed(), X, "layer.weight"),
    "a table that is a head too": (RotatedLookup(), IDS, "table.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_more_than_its_map_is_found(name):
    net, batch, weight = WRONG[name]
    assert list(unlike(net, batch)) == [weight]
    with torch.autocast("cpu", torch.bfloat16):
        assert list(unlike(net, batch)) == [weight]


def test_attention_with_other_weights_than_its_own_is_found():
    net = ScaledAttention(4, 2)
    assert list(unlike(net, X[:, None])) == ["in_proj_weight"]


def test_a_use_without_a_call_is_said():
    assert unlike(WithoutCall(), X) == {"layer.weight": "it is used without a call of its module"}


class Attends(nn.MultiheadAttention):
    def forward(self, x):
        key = torch.cat([x, x * x], dim=1 if self.batch_first else 0)
        return super().forward(x, *(key[..., :width] for width in (self.kdim, self.vdim)))


class Reads(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x)
        return found[0] if isinstance(found, tuple) else found


class Weighs(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(10, 4, mode="sum", padding_idx=1)

    def forward(self, ids, offsets):
        return self.table(ids, offsets, torch.arange(6.0)).tanh()


class Decodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layer(x, x.flip(1), mask, tgt_is_causal=True)


class ScaledAttention(nn.MultiheadAttention):
    def forward(self, x):
        weights = (2 * self.in_proj_weight, self.in_proj_bias)
        out = (self.out_proj.weight, self.out_proj.bias)
        given = (x, x, x, 4, 2, *weights, None, None, False, 0.0, *out)
        return functional.multi_head_attention_forward(*given)


def conv(**kwargs):
    return nn.Sequential(nn.Conv2d(2, 4, 3, **kwargs), nn.Tanh(), nn.Conv2d(4, 2, 1, bias=False))


class Enlarges(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.ConvTranspose2d(2, 4, 3), nn.ConvTranspose2d(4, 1, 3, 2, 1)

    def forward(self, x):
        return self.second(self.first(x).relu(), output_size=(22, 22))


SIX = torch.randn(2, 6, 9)
IMAGES, TOKENS = torch.randn(2, 2, 9, 9), {"input_ids": torch.randint(3, 20, (2, 6))}
SMALL = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RIGHT = {
    "layers": (around(nn.Linear(4, 4)), X),
    "an adapter beside it": (around(Adds()), X),
    "a hook that adds": (around(hooked_layer("register_forward_hook", lambda m, x, y: y + 1)), X),
    "a hook on inputs": (
        around(hooked_layer("register_forward_pre_hook", lambda m, x: (2 * x[0],))),
        X,
    ),
    "convolution": (conv(stride=2, dilation=2), IMAGES),
    "groups": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh()), IMAGES.repeat(1, 2, 1, 1)),
    "many groups": (nn.Sequential(nn.Conv1d(6, 9, 3, groups=3, stride=2), nn.Tanh()), SIX),
    "transposed convolution": (Enlarges(), IMAGES),
    "circular convolution": (conv(padding=1, padding_mode="circular"), IMAGES),
    "padded convolution": (conv(padding="same"), IMAGES),
    "sequences": (nn.Sequential(nn.Conv1d(2, 4, 3, padding=1)), IMAGES[:, :, 0]),
    "padding": (nn.Sequential(nn.Embedding(10, 4, padding_idx=0), nn.Linear(4, 3)), IDS),
    "sparse": (nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 3)), IDS),
    "by frequency": (
        nn.Sequential(nn.Embedding(10, 4, scale_grad_by_freq=True), nn.Linear(4, 3)),
        IDS,
    ),
    "LSTM": (Reads(nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2)), X[:, None]),
    "GRU": (Reads(nn.GRU(4, 3, batch_first=True)), X[None]),
    "RNN without biases": (Reads(nn.RNN(4, 3, bias=False)), X),
    "a cell": (Reads(nn.GRUCell(4, 3)), X),
    "bags": (nn.Sequential(nn.EmbeddingBag(10, 4, padding_idx=0), nn.Linear(4, 3)), IDS[None]),
    "weighted bags": (Weighs(), (IDS, torch.tensor([0, 2, 2]))),
    "bfloat16": (around(nn.Linear(4, 4)).bfloat16(), torch.randn(500, 4).bfloat16()),
    "float64": (around(nn.Linear(4, 4)).double(), X.double()),
    "transformer": (
        nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        ),
        torch.randn(3, 5, 8),
    ),
    "attention over another sequence": (Attends(4, 2, batch_first=True), torch.randn(3, 5, 4)),
    "attention of several widths": (Attends(4, 2, kdim=2, vdim=3, add_bias_kv=True), X[:, None]),
    "attention without batch": (Attends(4, 2, bias=False, add_zero_attn=True), X),
    "decoder": (Decodes(), torch.randn(3, 5, 8)),
    "GPT-2": (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, **SMALL)
        ),
        TOKENS,
    ),
    "T5": (
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                num_layers=1,
                num_heads=2,
                d_model=8,
                d_ff=16,
                d_kv=4,
                decoder_start_token_id=0,
                **SMALL,
            )
        ),
        TOKENS | {"labels": TOKENS["input_ids"]},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_a_linear_map_is_taken_for_one(name):
    net, batch = RIGHT[name]
    assert len(find_linear_maps(net)[0]) > 0
    assert unlike(net, batch) == {}


def test_one_weight_of_several_modules_is_one_map():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    assert unlike(net, X) == {}


def test_a_large_batch_under_autocast_is_no_reason():
    with torch.autocast("cpu", torch.bfloat16):
        assert unlike(around(nn.Linear(4, 4)), torch.randn(4096, 4)) == {}


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Scales(4, 4)

    def forward(self, x):
        return checkpoint(self.layer, x.requires_grad_(), use_reentrant=True)


class Decided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).argmax(-1)


def test_where_there_is_no_gradient_nothing_is_said():
    assert unlike(Reentrant(), X.clone()) == {}
    assert unlike(Decided(), X) == {}


def test_outputs_of_any_kind_will_do():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), Scales(4, 4)

        def forward(self, x):
            return {"a": (self.one(x), None, "text"), "b": torch.complex(self.two(x), x)}

    assert list(unlike(Several(), X)) == ["two.weight"]


def test_it_leaves_no_trace():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Scales(4, 2))
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert unlike(net, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert not any(child._forward_hooks for child in net.modules())
