import random

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from recall_lightning.measuring.isolation import undisturbed
from tests.support.processes import run_python


class Noisy(nn.Module):
    """Everything a forward can disturb."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.frozen = nn.BatchNorm1d(4), nn.Dropout(), nn.Dropout()
        self.metric = MeanMetric()
        self.frozen.eval()

    def forward(self, inputs):
        self.metric.update(float(torch.rand(()) + np.random.rand() + random.random()))
        return self.frozen(self.drop(self.norm(inputs)))


def test_a_forward_leaves_no_trace():
    model = Noisy()
    model.metric.update(2.0)
    model(torch.randn(6, 4)).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    metric, rng = model.metric.compute(), (torch.get_rng_state(), np.random.get_state()[1].tolist())
    python, count = random.getstate(), model.metric.update_count
    with undisturbed(model):
        model(torch.randn(6, 4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.metric.compute() == metric
    assert model.metric.update_count == count
    assert np.random.get_state()[1].tolist() == rng[1]
    assert random.getstate() == python


def test_the_torch_random_state_is_put_back():
    model = nn.Dropout()
    before = torch.get_rng_state()
    with undisturbed(model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.processes
def test_measuring_imports_no_metrics_no_clustering_and_no_transformers(tmp_path):
    heavy = "torchmetrics", "sklearn", "transformers", "lightning", "scipy"
    modules = "hidden_states", "curvature", "typical_samples", "candidates", "generation"
    code = "import sys\n" + "".join(f"import recall_lightning.measuring.{m}\n" for m in modules)
    code += f"print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code, folder=tmp_path).out.strip() == "[]"
