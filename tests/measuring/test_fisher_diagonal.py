from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from recall_lightning.measuring.fisher_diagonal import fisher_diagonal
from recall_lightning.measuring.linear_maps import LinearMap, as_matrix, find_linear_maps


class Tagger(nn.Module):
    """Predicts a class a token."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = (
            nn.Embedding(5, 3),
            nn.Linear(3, 4),
            nn.Linear(4, 2),
        )

    def forward(self, input_ids):
        return self.head(self.hidden(self.embedding(input_ids)).tanh())


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 2, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.patches(x).tanh().mean((2, 3)))


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(5, 3), nn.Linear(3, 2)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).tanh())


class Sequences(nn.Module):
    """Attention and a recurrent layer, both with the steps first."""

    def __init__(self):
        super().__init__()
        self.attention, self.recurrent = nn.MultiheadAttention(2, 1), nn.RNN(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        steps = x.transpose(0, 1)
        attended, _ = self.attention(steps, steps, steps)
        outputs, _ = self.recurrent(2 * attended)
        return self.head(outputs.sum(0))


def exact(module, inputs, name):
    """Σ over predictions and classes of p (∂ log p / ∂W)², a mean over predictions."""
    log_p = module(inputs).log_softmax(-1).flatten(0, -2)
    weight, total = module.get_parameter(name), 0.0
    for one in log_p.flatten():
        (gradient,) = torch.autograd.grad(one, weight, retain_graph=True)
        total = total + one.exp().detach() * gradient**2
    return total / len(log_p)


@pytest.mark.parametrize(
    ("module", "inputs", "labels", "names"),
    [
        (
            Tagger,
            torch.tensor([[0, 1, 1], [4, 2, 1]]),
            torch.tensor([[0, 1, 1], [1, 1, 0]]),
            ["embedding.weight", "hidden.weight", "head.weight"],
        ),
        (Patches, torch.randn(2, 1, 3, 3), torch.tensor([0, 2]), ["patches.weight", "head.weight"]),
        (Bags, torch.tensor([[0, 1, 1], [4, 2, 1]]), torch.tensor([0, 1]), ["table.weight"]),
        (
            Sequences,
            torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0, 1]),
            [
                "attention.in_proj_weight[2:4]",
                "attention.in_proj_weight[4:6]",
                "attention.out_proj.weight",
                "recurrent.weight_ih_l0",
                "recurrent.weight_hh_l0",
            ],
        ),
    ],
)
def test_the_diagonal_is_that_of_the_fisher_matrix(module, inputs, labels, names):
    torch.manual_seed(0)
    module = module()
    many = [torch.cat([tensor] * 100) for tensor in (inputs, labels)]
    batch = dict(zip(("input_ids", "labels"), many, strict=True))
    batches = [batch if inputs.dtype == torch.long else tuple(many)] * 30
    maps = {one.name: one for one in find_linear_maps(module)[0]}
    found = fisher_diagonal(module, list(maps.values()), batches).diagonal
    for name in names:
        one = replace(maps[name], bias=None)
        expected = as_matrix(one, {one.weight: exact(module, inputs, one.weight)})
        measured = found[name][:, : expected.shape[1]]  # a bias is the last column
        torch.testing.assert_close(measured, expected, rtol=0.15, atol=2e-3)


def test_an_adapters_update_has_the_diagonal_of_the_weight_that_it_is_added_to():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    adapted = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    batch = (torch.randn(6, 5, 3), torch.randint(2, (6, 5)))
    layer = "base_model.model.0"
    update = LinearMap(f"{layer}.lora_B.default.weight", None, "linear", (layer,), 3)
    of_update = fisher_diagonal(adapted, [update], [batch], predictions="classes")
    merged = adapted.merge_and_unload().requires_grad_()
    whole = LinearMap("0.weight", None, "linear", ("0",), 3)
    of_whole = fisher_diagonal(merged, [whole], [batch], predictions="classes")
    torch.testing.assert_close(of_update.diagonal[update.weight], of_whole.diagonal["0.weight"])


def test_no_gradient_mode_or_random_state_is_left():
    net, batch = (
        nn.Sequential(nn.Linear(3, 2), nn.Dropout()),
        (torch.randn(4, 3), torch.arange(4) % 2),
    )
    before = torch.get_rng_state()
    fisher_diagonal(net, find_linear_maps(net)[0], [batch])
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert net[0].weight.grad is None


def test_why_nothing_is_known_is_told():
    net = nn.Linear(3, 2)
    found = fisher_diagonal(net, find_linear_maps(net)[0], [torch.randn(4, 3)])
    assert found.diagonal == {}
    assert "no targets that fit" in found.unknown
