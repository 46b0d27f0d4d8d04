from types import SimpleNamespace

import pytest
import torch
from torch import nn

from recall_lightning import TaskAwareCallback
from recall_lightning.callbacks._trainer.clock import TaskClock
from recall_lightning.recall.squared_gradients import SquaredGradients
from tests.support.training import Plain, loader, quiet_trainer


class Observed(TaskAwareCallback):
    """Observes, and keeps every gradient that it saw."""

    def __init__(self, steps):
        super().__init__()
        self.squares, self.seen = SquaredGradients(steps), []

    def on_task_start(self, trainer, pl_module, task):
        self.squares.start_task()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.squares.observe(self.clock, optimizer, pl_module)
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        self.seen.append({name: gradient.clone() for name, gradient in gradients.items()})

    def by_hand(self, name, last):
        return torch.stack([seen[name].square() for seen in self.seen[-last:]]).mean(0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_mean_is_over_a_tasks_last_optimizer_steps(accumulate):
    observed, model = Observed(steps=3), Plain()
    trainer = quiet_trainer(observed, accumulate_grad_batches=accumulate, max_epochs=2)
    trainer.fit(model, loader(0))
    mean = observed.squares.mean()
    assert list(mean) == [name for name, _ in model.named_parameters()]
    for name, value in mean.items():
        torch.testing.assert_close(value, observed.by_hand(name, 3))
    assert observed.squares.count == 3
    assert len(observed.seen) == 16 // accumulate


def test_a_task_shorter_than_the_window_is_averaged_whole():
    observed = Observed(steps=100)
    quiet_trainer(observed).fit(Plain(), loader(0))
    for name, value in observed.squares.mean().items():
        torch.testing.assert_close(value, observed.by_hand(name, 8))


def test_every_task_starts_anew():
    observed, model = Observed(steps=100), Plain()
    for task in range(2):
        quiet_trainer(observed).fit(model, loader(task))
    torch.testing.assert_close(
        observed.squares.mean()["net.0.weight"], observed.by_hand("net.0.weight", 8)
    )


def task(done, steps):
    clock = TaskClock()
    clock.step_in_task, clock.task_steps = done, steps
    return clock


def test_a_task_without_a_known_end_has_an_exponential_mean():
    squares, net = SquaredGradients(steps=2), nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters())
    for done, gradient in enumerate([1.0, 3.0, 5.0]):
        net.weight.grad = torch.full((1, 1), gradient)
        squares.observe(task(done, None), optimizer, net)
    assert squares.mean()["weight"].item() == pytest.approx(((1 + 9) / 2 + 25) / 2)


def test_weights_without_a_gradient_are_zero_and_statistics_left_out():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    net[0].requires_grad_(False)
    net[1].weight.grad, net[1].bias.grad = torch.ones(2), None
    net.add_module("tied", net[2])
    squares = SquaredGradients(steps=2)
    squares.observe(task(0, 1), torch.optim.SGD(net.parameters()), net)
    mean = {name: value.tolist() for name, value in squares.mean().items()}
    assert mean == {"1.weight": [1, 1], "1.bias": [0, 0], "2.weight": [[0, 0], [0, 0]]}


def test_a_step_without_a_gradient_counts_as_zero():
    net = nn.Linear(1, 1, bias=False)
    squares, optimizer = SquaredGradients(steps=2), torch.optim.SGD(net.parameters())
    net.weight.grad = torch.full((1, 1), 2.0)
    squares.observe(task(0, 2), optimizer, net)
    net.weight.grad = None
    squares.observe(task(1, 2), optimizer, net)
    assert squares.mean()["weight"].item() == 2


def test_of_several_optimizers_each_counts_its_own_steps():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    first, second = (torch.optim.SGD(layer.parameters()) for layer in net)
    squares = SquaredGradients(steps=5)
    for gradient in (1.0, 3.0):
        net[0].weight.grad = net[1].weight.grad = torch.full((1, 1), gradient)
        squares.observe(task(0, 5), first, net)
    squares.observe(task(0, 5), second, net)
    assert {n: m.item() for n, m in squares.mean().items()} == {"0.weight": 5, "1.weight": 9}


def test_sparse_gradients_are_summed_before_they_are_squared():
    table = nn.Embedding(3, 1, sparse=True)
    table(torch.tensor([1, 1])).sum().backward()
    squares = SquaredGradients(steps=1)
    squares.observe(task(0, 1), torch.optim.SGD(table.parameters()), table)
    assert squares.mean()["weight"].flatten().tolist() == [0, 4, 0]


def test_a_step_that_is_not_finite_does_not_count():
    net = nn.Linear(1, 1, bias=False)
    squares, optimizer = SquaredGradients(steps=2), torch.optim.SGD(net.parameters())
    for gradient in (float("inf"), 2.0):
        net.weight.grad = torch.full((1, 1), gradient)
        squares.observe(task(0, 2), optimizer, net)
    assert (squares.mean()["weight"].item(), squares.count) == (4, 1)


def test_half_precision_gradients_are_squared_in_float32():
    net = nn.Linear(1, 1, bias=False).half()
    net.weight.grad = torch.full((1, 1), 1e-4, dtype=torch.half)
    squares = SquaredGradients(steps=1)
    squares.observe(task(0, 1), torch.optim.SGD(net.parameters()), net)
    assert squares.mean()["weight"].item() == pytest.approx(1e-8, rel=1e-2)


def test_the_state_goes_on_in_another_object():
    part, whole = SquaredGradients(steps=2), SquaredGradients(steps=2)
    net = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters())
    for done in range(2):
        net.weight.grad = torch.full((1, 1), done + 1.0)
        for squares in (part, whole):
            squares.observe(task(done, 2), optimizer, net)
        state, part = part.state_dict(), SquaredGradients(steps=2)
        part.load_state_dict(state)
    assert part.mean()["weight"].item() == whole.mean()["weight"].item() == 2.5


def test_what_amp_has_scaled_a_fused_optimizers_gradients_by_is_undone():
    """A stand-in for 16-mixed, which needs a GPU: fused optimizers get scaled gradients."""
    net = nn.Linear(1, 1, bias=False)
    net._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=SimpleNamespace()))
    net._trainer.precision_plugin.scaler.get_scale = lambda: 8.0
    for fused, expected in ((True, 1.0), (False, 64.0)):
        optimizer, squares = torch.optim.AdamW(net.parameters(), fused=fused), SquaredGradients(1)
        net.weight.grad = torch.full((1, 1), 8.0)
        squares.observe(TaskClock(), optimizer, net)
        assert squares.mean()["weight"].item() == expected
