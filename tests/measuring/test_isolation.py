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


class Lora(nn.Linear):
    """Adds its update to its weight for evaluation, as loralib's layers do."""

    def __init__(self):
        super().__init__(4, 4)
        self.merged, self.acted = False, 0
        self.weight.requires_grad = False
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.b @ self.a
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.a.T @ self.b.T)


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: nn.Sequential(layer)])
def test_a_layer_that_acts_in_train_is_told_to_act_back_and_keeps_every_bit(wrap):
    model = nn.Sequential(wrap(Lora()), nn.Dropout())
    layer = next(child for child in model.modules() if isinstance(child, Lora))
    weight, x = layer.weight.clone(), torch.randn(3, 4)
    expected = layer(x)
    with undisturbed(model):
        assert layer.merged
        torch.testing.assert_close(layer(x), expected)
    assert not layer.merged
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), expected)


def test_a_layer_that_is_merged_within_a_model_in_training_stays_so():
    model = nn.Sequential(Lora(), Lora())
    model[0].eval()
    weights = [layer.weight.clone() for layer in model]
    with undisturbed(model):
        pass
    assert [layer.merged for layer in model] == [True, False]
    assert all(torch.equal(layer.weight, w) for layer, w in zip(model, weights, strict=True))


def test_what_a_module_does_elsewhere_in_train_is_done_back():
    class Tells(nn.Module):
        def train(self, mode=True):
            told.append(mode)
            return super().train(mode)

    told = []
    model = nn.Sequential(nn.Sequential(Tells()), Tells())
    model[1].eval()
    told.clear()
    with undisturbed(model):
        assert told == [False, False]
    # the root's train reaches both, and the second goes back to evaluation
    assert told == [False, False, True, True, False]
    assert [model.training, model[0][0].training, model[1].training] == [True, True, False]


def test_a_model_that_rebuilds_itself_for_evaluation_is_what_it_was():
    class Fuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.fused = nn.Linear(2, 2), nn.Linear(2, 2), None

        def train(self, mode=True):
            if not mode:
                self.fused = nn.Linear(2, 2)
                del self.one, self.other
            return super().train(mode)

    model = Fuses()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with undisturbed(model):
        assert list(dict(model.named_children())) == ["fused"]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


@pytest.mark.parametrize("fails_at", [False, True])
def test_a_train_method_that_raises_leaves_modes_and_state_as_they_were(fails_at):
    class Raises(nn.Module):
        count = 0

        def train(self, mode=True):
            self.count += 1
            if mode == fails_at:
                raise RuntimeError("not now")
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(), Raises(), nn.Dropout())
    with pytest.raises(RuntimeError, match="not now"), undisturbed(model):
        pass
    assert all(child.training for child in model.modules())
    assert model[1].count == 0


def test_observers_learn_nothing_from_a_measurement():
    model = torch.ao.quantization.FakeQuantize(torch.ao.quantization.MovingAverageMinMaxObserver)
    model(torch.randn(8))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with undisturbed(model):
        model(10 * torch.randn(8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    "normed",
    [
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_normed_weight_goes_on_as_if_nothing_had_been_measured(normed):
    def trained(measured):
        torch.manual_seed(0)
        model = nn.Sequential(normed(nn.Linear(4, 4)))
        outputs = []
        for _ in range(3):
            outputs.append(model(torch.ones(1, 4)))
            if measured:
                with undisturbed(model):
                    model(torch.randn(1, 4))
            outputs[-1].sum().backward()
        return [*outputs, *model.state_dict().values(), *(p.grad for p in model.parameters())]

    assert all(torch.equal(*pair) for pair in zip(trained(True), trained(False), strict=True))


def test_which_parameters_are_trainable_is_put_back():
    model = nn.Linear(2, 2)
    with undisturbed(model):
        model.requires_grad_(False)
    assert model.weight.requires_grad
