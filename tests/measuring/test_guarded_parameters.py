import warnings

import pytest
import torch
from torch import nn

from recall_lightning.measuring.curvature import kronecker_factors
from recall_lightning.measuring.guarded_parameters import guarded_parameters
from recall_lightning.measuring.linear_maps import find_linear_maps


class Clips(nn.Linear):
    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_written_parameter_is_told_once_and_put_back_from_then_on():
    model = nn.Sequential(Clips(8, 8), nn.Linear(8, 8))
    told = pytest.warns(UserWarning, match=r"Sequential in evaluation mode wrote .* 0\.weight:")
    with told, guarded_parameters(model):
        model(torch.ones(8))
    before = nn.init.uniform_(model[0].weight).clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guarded_parameters(model):
            model(torch.ones(8))
            assert not torch.equal(model[0].weight, before)
    assert torch.equal(model[0].weight, before)


def test_rows_that_a_lookup_shrinks_keep_their_length():
    model = nn.Embedding(4, 2, max_norm=0.1)
    before = model.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guarded_parameters(model):
            model(torch.arange(4))
    assert torch.equal(model.weight, before)


class Reversible(torch.autograd.Function):
    """Computes its layer once more in backward, and calls backward there."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            ctx.layer(x).backward(gradient)
        return x.grad, None


def test_a_backward_within_the_backward_leaves_no_gradients():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.head(Reversible.apply(self.first(x), self.inner))

    model = Net()
    model(torch.randn(8, 4)).sum().backward()
    before = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    batch = torch.randn(8, 4), torch.randn(8, 4)
    factors = kronecker_factors(model, find_linear_maps(model)[0], [batch])
    assert "first.weight" in factors.outputs
    for parameter, (gradient, value) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
