"""How large the optimizer's steps are, against the largest of the task."""

from typing import Any, TypedDict

from torch.optim import Optimizer

from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.statistics.base import Statistic

_LEAST = 1e-6  # a rate may have come to 0, and what the old counts is positive


class StepSizesState(TypedDict):
    """What a checkpoint holds of them: each optimizer's largest learning rate, and its last."""

    rates: dict[int, list[float]]


class StepSizes(Statistic):
    """The learning rate of now, as a share of the largest that the task has had.

    A merge within a task is the proximal step of a penalty, and stands for the optimizer steps
    since the last one: it has to shrink with them. Of a constant strength, at the end of a cosine
    it would undo what the task has learned, and no step is left that could learn it again. Source:
    proximal gradient descent, whose two steps have one size (Parikh and Boyd 2014, Proximal
    Algorithms, section 4.2).

    It is 1 where no learning rate is known, as where Adafactor finds its own. Of an optimizer with
    several groups the largest rate counts; of several optimizers, as of a GAN, the largest share.

    Example:
        >>> import torch
        >>> optimizer, sizes = torch.optim.SGD([torch.ones(1)], lr=0.4), StepSizes()
        >>> sizes.observe(0, optimizer)
        >>> optimizer.param_groups[0]["lr"] = 0.1
        >>> sizes.observe(0, optimizer)
        >>> sizes.share
        0.25
    """

    name = "step_sizes"
    form = StepSizesState

    def __init__(self) -> None:
        self._rates: dict[int, list[float]] = {}  # optimizer to its largest, and its last

    @property
    def share(self) -> float:
        """The last learning rate by the largest."""
        shares = [last / largest for largest, last in self._rates.values() if largest > 0]
        return max(max(shares, default=1.0), _LEAST)

    def observe(self, number: int, optimizer: Optimizer) -> None:
        """See an optimizer, the Trainer's with that number, before its step."""
        rates = [group.get("lr") for group in optimizer.param_groups]
        last = max((float(rate) for rate in rates if rate is not None), default=0.0)
        largest, _ = self._rates.get(number, (0.0, 0.0))
        self._rates[number] = [max(last, largest), last]

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
