import pytest
import torch
from torch import nn

from recall_lightning.measuring.bags import bags, sequences
from recall_lightning.measuring.curvature import kronecker_factors
from recall_lightning.measuring.input_moments import input_moments
from recall_lightning.measuring.linear_maps import find_linear_maps

IDS = torch.tensor([3, 1, 1, 0, 2, 3, 5])
WEIGHTS = torch.tensor([0.5, 2.0, -1.0, 3.0, 0.0, 1.0, 4.0])
CALLS = {
    "equal bags": ({"mode": "mean"}, (IDS[:6].view(2, 3),)),
    "offsets": ({"mode": "sum"}, (IDS, torch.tensor([0, 2, 6]))),
    "an empty bag": ({"mode": "mean"}, (IDS, torch.tensor([0, 2, 2]))),
    "the last offset": (
        {"mode": "mean", "include_last_offset": True},
        (IDS, torch.tensor([0, 3, 7])),
    ),
    "weights": ({"mode": "sum"}, (IDS, torch.tensor([0, 4]), WEIGHTS)),
    "weights of equal bags": (
        {"mode": "sum", "padding_idx": 3},
        (IDS[:6].view(2, 3), None, WEIGHTS[:6].view(2, 3)),
    ),
    "padding": ({"mode": "mean", "padding_idx": 1}, (IDS, torch.tensor([0, 1, 3]))),
    "int32": ({"mode": "mean"}, (IDS.int(), torch.tensor([0, 2]).int())),
}


@pytest.mark.parametrize("name", CALLS)
def test_bags_times_the_table_are_what_the_layer_returns(name):
    options, given = CALLS[name]
    layer = nn.EmbeddingBag(6, 4, **options)
    torch.testing.assert_close(bags(layer, *given) @ layer.weight, layer(*given))


@pytest.mark.parametrize("name", CALLS)
def test_a_bag_is_measured_as_the_layer_on_its_bags(name):
    options, given = CALLS[name]
    layer = nn.EmbeddingBag(6, 4, **options)
    (one,), _ = find_linear_maps(layer)
    found = input_moments(layer, [one], [given], lambda m, batch: m(*batch))["weight"]
    dense = bags(layer, *given).to_dense()
    torch.testing.assert_close(found.matrix, dense.T @ dense / len(dense))


def test_curvature_of_a_bag_is_that_of_the_same_linear_layer():
    torch.manual_seed(0)
    table = nn.EmbeddingBag(6, 4, mode="mean")
    layer = nn.Linear(6, 4, bias=False)
    layer.weight.data.copy_(table.weight.T)
    inputs, labels = torch.randint(0, 6, (50, 3)), torch.zeros(50, dtype=torch.long)
    factors = [
        kronecker_factors(net, find_linear_maps(net)[0], [(x, labels)])
        for net, x in ((table, inputs), (layer, bags(table, inputs).to_dense()))
    ]
    torch.testing.assert_close(
        factors[0].outputs["weight"].matrix, factors[1].outputs["weight"].matrix
    )
    torch.testing.assert_close(
        factors[0].inputs["weight"].matrix, factors[1].inputs["weight"].matrix
    )


@pytest.mark.parametrize("masked", [True, False])
def test_an_embedding_of_sequences_is_measured_together_and_one_by_one(masked):
    table = nn.Embedding(6, 4, padding_idx=None if masked else 5)
    ids = torch.tensor([[0, 1, 1, 1], [2, 2, 5, 5]])
    batch = {"ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    if not masked:
        del batch["attention_mask"]
    (one,), _ = find_linear_maps(table)
    found = input_moments(table, [one], [batch], lambda m, b: m(b["ids"]))["weight"].matrix
    shares = torch.tensor([[0.25, 0.75, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    together = shares * torch.tensor([[4.0], [2.0]]) ** 0.5
    expected = (together.T @ together + torch.diag(shares.sum(0))) / 2
    torch.testing.assert_close(found, expected / 2)


def test_lookups_of_one_a_sample_are_counted():
    table = nn.Embedding(4, 2)
    (one,), _ = find_linear_maps(table)
    for ids in (torch.tensor([1, 1, 3, 0]), torch.tensor([[1], [1], [3], [0]])):
        found = input_moments(table, [one], [ids])["weight"].matrix
        torch.testing.assert_close(found, torch.diag(torch.tensor([0.25, 0.5, 0, 0.25])))


def test_an_embedding_is_measured_in_float32_where_a_trainer_makes_another_the_default():
    sequence = torch.tensor([[0, 1, 1, 1]])
    wanted, shares = sequences(nn.Embedding(3, 2), sequence)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = sequences(nn.Embedding(3, 2), sequence)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0].to_dense(), wanted.to_dense())
    assert torch.equal(found[1], shares)
