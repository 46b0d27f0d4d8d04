"""Squared gradients over a task's last steps: the diagonal of the empirical Fisher matrix."""

from typing import Any, TypedDict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.clock import TaskClock
from recall_lightning.callbacks._trainer.gradients import amp_scale, dense, optimized_weights
from recall_lightning.checks import FormError
from recall_lightning.weights.sharding import sharded_like, whole


class SquaredGradientsState(TypedDict):
    """What a checkpoint holds of them."""

    mean: dict[str, Tensor]
    counts: dict[str, int]


class SquaredGradients:
    """The mean of each weight's squared gradient over the last optimizer steps of a task.

    The gradient is the one the optimizer is about to use: of the mean loss over a batch, over all
    accumulated batches and all processes, before clipping and without AMP's scale. For a loss that
    averages B independent samples the mean square is, near the loss's minimum, 1/B of the diagonal
    of the empirical Fisher matrix, E[(∂ log p / ∂θ)²].

    Where the task's length is not known, or it turns out longer than it was thought, the mean is
    an exponential one with the time constant ``steps``. A step whose gradient is not finite (AMP
    skips such steps) does not count. A weight without a gradient in a step counts as zero there.

    Args:
        steps: How many optimizer steps before the task's end are averaged, 1 or more.

    Example:
        >>> squared_gradients = SquaredGradients(steps=2)
        >>> net = nn.Linear(1, 1, bias=False)
        >>> optimizer, clock = torch.optim.SGD(net.parameters(), lr=0.1), TaskClock()
        >>> for gradient in (1.0, 3.0):
        ...     net.weight.grad = torch.full((1, 1), gradient)
        ...     squared_gradients.observe(clock, optimizer, net)
        >>> squared_gradients.mean()["weight"].item()
        5.0
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._mean: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Steps observed in this task so far, of the optimizer that took the most."""
        return max(self._counts.values(), default=0)

    def start_task(self) -> None:
        """Forget what earlier tasks left."""
        self._mean, self._counts = {}, {}

    @torch.no_grad()
    def observe(
        self, clock: TaskClock, optimizer: Optimizer, pl_module: nn.Module | LightningModule
    ) -> None:
        """Take in one step's gradients; call it in ``on_before_optimizer_step``.

        Args:
            clock: Tells how far the task has come: ``task_steps`` and ``step_in_task``.
            optimizer: The optimizer that is about to step; only its parameters count.
            pl_module: The module whose weights these are.
        """
        if clock.task_steps is not None and clock.task_steps - clock.step_in_task > self.steps:
            return
        weights = optimized_weights(optimizer, pl_module)
        scale = amp_scale(optimizer, pl_module)
        gradients = {n: dense(w.grad) for n, w in weights.items() if w.grad is not None}
        if not whole(torch.nn.utils.get_total_norm(list(gradients.values()))).isfinite():
            return
        for name, weight in weights.items():
            mean = self._mean.get(name)
            if mean is None:
                mean = torch.zeros_like(weight, dtype=torch.float32)
            # a checkpoint's is whole, and on the CPU
            mean = self._mean[name] = sharded_like(mean.to(weight.device), weight)
            self._counts[name] = self._counts.get(name, 0) + 1
            share = 1 / min(self._counts[name], self.steps)
            mean.mul_(1 - share)
            if name in gradients:
                gradient = gradients[name].float() / scale
                mean.addcmul_(gradient, gradient, value=share)

    def mean(self) -> dict[str, Tensor]:
        """Return canonical weight name to mean squared gradient.

        Each has its weight's shape, in float32 on its device; it is zero for a weight that never
        had a gradient. Only weights of optimizers that stepped are in it, and none before the
        first observed step.
        """
        return dict(self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the means and how many steps each is of."""
        return {"mean": dict(self._mean), "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If not every mean has its count.
        """
        if state_dict["mean"].keys() != state_dict["counts"].keys():
            raise FormError("the mean and the counts of squared gradients are not of the same")
        self._mean = dict(state_dict["mean"])
        self._counts = dict(state_dict["counts"])
