"""How far the optimizer has gone since the last merge, in steps of the task's largest size."""

from typing import Any, TypedDict

from torch.optim import Optimizer

from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.statistics.base import Statistic

_STEPS = 48  # of the largest size, after which a merge counts in full
_LEAST = 1e-6  # learning rates may have come to 0, and what the old counts is positive


class StepSizesState(TypedDict):
    """What a checkpoint holds: each optimizer's largest learning rate, and their sum by now."""

    rates: dict[int, list[float]]


class StepSizes(Statistic):
    """What a merge within a task stands for: the optimizer steps since the last one.

    As the proximal step of a penalty it has their number and their size, or a short task is held
    where it began, and at the end of a cosine merges undo what no step is left to learn again.
    Source: proximal gradient descent, whose two steps have one size (Parikh and Boyd 2014, Proximal
    Algorithms, section 4.2).

    Of an optimizer with several groups the largest learning rate counts; of several optimizers, as
    of a GAN, the one that went farthest. One whose rate is not known, as of Adafactor, takes steps
    of one size.

    Example:
        >>> import torch
        >>> optimizer, steps = torch.optim.SGD([torch.ones(1)], lr=0.4), StepSizes()
        >>> for rate in (0.4, 0.4, 0.2, 0.2):
        ...     optimizer.param_groups[0]["lr"] = rate
        ...     steps.observe(0, optimizer)
        >>> round(48 * steps.share, 3)
        3.0
    """

    name = "step_sizes"
    form = StepSizesState

    def __init__(self) -> None:
        self._rates: dict[int, list[float]] = {}  # optimizer to the largest, and the sum

    @property
    def share(self) -> float:
        """How much of a merge they make, in (0, 1]: all of it from 48 of the largest size on."""
        gone = [total / largest for largest, total in self._rates.values() if largest > 0]
        return min(max([*gone, _LEAST]) / _STEPS, 1.0)

    def observe(self, number: int, optimizer: Optimizer) -> None:
        """See an optimizer, the Trainer's with that number, before its step."""
        rates = [
            1.0 if group.get("lr") is None else group["lr"] for group in optimizer.param_groups
        ]
        rate = max(map(float, rates), default=0.0)
        largest, total = self._rates.get(number, (0.0, 0.0))
        self._rates[number] = [max(rate, largest), total + rate]

    def merged(self) -> None:
        """Begin the time after a merge."""
        self._rates = {number: [largest, 0.0] for number, (largest, _) in self._rates.items()}

    def start_task(self, context: TaskContext) -> None:
        """Forget the last task's."""
        self._rates = {}

    def observe_gradients(self, context: TaskContext, optimizer: Optimizer) -> None:
        """See the learning rate of the step to come."""
        optimizers = context.trainer.optimizers
        number = next((n for n, own in enumerate(optimizers) if own is optimizer), 0)
        self.observe(number, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the rates."""
        return {"rates": self._rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._rates = {number: list(rates) for number, rates in state_dict["rates"].items()}
