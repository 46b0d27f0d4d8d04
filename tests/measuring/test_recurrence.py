import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from recall_lightning.measuring.curvature import kronecker_factors
from recall_lightning.measuring.input_moments import input_moments
from recall_lightning.measuring.linear_maps import find_linear_maps
from recall_lightning.measuring.recurrence import RecurrenceApart

X, LENGTHS = torch.randn(5, 3, 4), torch.tensor([3, 5, 1])
PACKED = pack_padded_sequence(X, LENGTHS, enforce_sorted=False)
LAYERS = {
    "LSTM": (nn.LSTM(4, 6), X),
    "LSTM both ways, projected": (nn.LSTM(4, 6, 2, bidirectional=True, proj_size=3), X),
    "LSTM packed": (nn.LSTM(4, 6, 2, bidirectional=True), PACKED),
    "LSTM of one sequence": (nn.LSTM(4, 6, batch_first=True), X[:, 0]),
    "GRU": (nn.GRU(4, 6, 2, bidirectional=True, batch_first=True), X),
    "GRU packed": (nn.GRU(4, 6, bias=False), PACKED),
    "RNN": (nn.RNN(4, 6, 2), X),
    "RNN, relu": (nn.RNN(4, 6, nonlinearity="relu", bidirectional=True), PACKED),
    "LSTM cell": (nn.LSTMCell(4, 6), X[0]),
    "GRU cell": (nn.GRUCell(4, 6, bias=False), X[0]),
    "RNN cell": (nn.RNNCell(4, 6), X[0, 0]),
    "RNN cell, relu": (nn.RNNCell(4, 6, nonlinearity="relu"), X[0]),
}


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [t for part in found if part is not None for t in tensors(part)]


@pytest.mark.parametrize("name", LAYERS)
def test_apart_they_compute_what_the_kernel_does(name):
    layer, inputs = LAYERS[name]
    expected = tensors(layer(inputs))
    with RecurrenceApart():
        found = tensors(layer(inputs))
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)


def test_a_first_state_is_taken_on():
    layer, state = nn.LSTM(4, 6), (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    with RecurrenceApart():
        found = layer(X, state)
    for own, other in zip(tensors(found), tensors(layer(X, state)), strict=True):
        torch.testing.assert_close(own, other)


def test_hidden_weights_are_measured_on_the_states_before():
    layer = nn.GRU(4, 6, bias=False)
    maps, _ = find_linear_maps(layer)
    found = input_moments(layer, maps, [X])
    states = torch.cat([torch.zeros(1, 3, 6), layer(X)[0].detach()[:-1]]).reshape(-1, 6)
    torch.testing.assert_close(found["weight_hh_l0"].matrix, states.T @ states / len(states))
    rows = X.reshape(-1, 4)
    torch.testing.assert_close(found["weight_ih_l0"].matrix, rows.T @ rows / len(rows))


class Unrolled(nn.Module):
    """An Elman network of two linear layers."""

    def __init__(self, layer):
        super().__init__()
        self.ih, self.hh = nn.Linear(4, 6), nn.Linear(6, 6)
        for own, of in ((self.ih, "ih"), (self.hh, "hh")):
            own.weight.data.copy_(getattr(layer, f"weight_{of}_l0"))
            own.bias.data.copy_(getattr(layer, f"bias_{of}_l0"))

    def forward(self, x):
        h = torch.zeros(3, 6)
        for step in x:
            h = (self.ih(step) + self.hh(h)).tanh()
        return h


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[1][0]


def test_curvature_is_that_of_the_layers_unrolled():
    layer = nn.RNN(4, 6)
    batch = (X, torch.tensor([0, 1, 2]))
    factors = []
    for net in (Last(copy.deepcopy(layer)), Unrolled(layer)):
        maps, _ = find_linear_maps(net)
        factors.append(kronecker_factors(net, maps, [batch], lambda m, b: m(b[0])))
    for name, apart in (("layer.weight_ih_l0", "ih.weight"), ("layer.weight_hh_l0", "hh.weight")):
        for found, expected in (
            (factors[0].inputs, factors[1].inputs),
            (factors[0].outputs, factors[1].outputs),
        ):
            torch.testing.assert_close(found[name].matrix, expected[apart].matrix)
