"""Uniform merging whose interval follows how fast the weights move."""

import math
from numbers import Integral
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from recall_lightning.methods.method import Method
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.recall.state import RecallState
from recall_lightning.weights.naming import named_weights


class AdaptiveState(RecallState):
    """What a checkpoint holds of it."""

    distance: float
    steps: int
    travelled: float
    waited: int


class AdaptiveInterval(SequentialFinetuningAveraging):
    """Merges uniformly, more often while the weights move fast and less often as they slow down.

    The weights' speed is ‖θ_t − θ_{t−1}‖ over all parameters, one optimizer step apart. A merge is
    due as soon as the distance travelled since the last one, the sum of these, reaches what the
    mean speed so far (of all tasks that merged) covers in ``every``: at constant speed the interval
    is ``every``, at twice the mean speed half of it. It stays within ``every / limit`` and
    ``every · limit``. The measure is relative: a model that is slow throughout merges as often as
    one that is fast throughout.

    Source: AIMMerging (arXiv 2509.17348). Of the paper is the learning signal alone: the interval
    follows the movement of the weights. Not of the paper are the formula above and the merge, which
    is uniform and towards the weights at the task's start; its forgetting signal and whatever else
    needs samples of earlier tasks is left out, as no old data is read here.

    Costs a copy of the trainable weights and two passes over them a step.

    Args:
        every: The interval at mean speed, and about the mean interval. A float in (0, 1] is a
            fraction of the task, an int a number of optimizer steps. The task's last step always
            merges.
        strength: The snapshot's weight in every merge, in [0, 1).
        limit: By how much the interval may be longer or shorter than ``every``, at least 1.
        merge_first_task: Whether to merge in the first task too. False for a model that starts from
            random weights.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range; see
            :class:`~recall_lightning.RecallCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AdaptiveInterval(every=0.25)], logger=False)
    """

    state_form: ClassVar[type] = AdaptiveState

    def __init__(
        self,
        every: int | float = 0.25,
        strength: float = 0.3,
        limit: float = 4.0,
        merge_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(every, strength, merge_first_task, task_epochs)
        if not limit >= 1:
            raise MisconfigurationException(
                f"limit={limit!r} must be 1 or more: how far the interval may go from every"
            )
        self.limit = limit
        self._distance, self._steps = 0.0, 0  # in all tasks that merged
        self._travelled, self._waited = 0.0, 0  # the same since the last merge
        self._before: dict[str, Tensor] = {}

    def should_merge(self, step_in_task: int, task_steps: int | None) -> bool:
        """Tell whether the weights have travelled far enough since the last merge.

        Args:
            step_in_task: Optimizer steps done in this task, from 1.
            task_steps: How many the task takes; None if its dataloader has no length.
        """
        if step_in_task == task_steps:
            return True
        interval = float(self.every)
        if not isinstance(self.every, Integral):
            if task_steps is None:
                self._interval.refuse_unknown_length()
            interval *= task_steps
        if self._waited < interval / self.limit or not self._steps:
            return False
        far = interval * self._distance / self._steps
        # tolerance: at constant speed both sides are equal but for rounding
        return self._waited >= interval * self.limit or self._travelled > far * (1 - 1e-6) > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, go on from the weights that the checkpoint held."""
        super().on_train_start(trainer, pl_module)
        self._remember(pl_module)

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Start an interval."""
        super().on_task_start(trainer, pl_module, task)
        if self.visit == 0:
            self._distance, self._steps = 0.0, 0
        self._travelled, self._waited = 0.0, 0
        self._remember(pl_module)

    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Measure the step, then merge, if it is time; what a merge moves does not count."""
        if self.visit == 0 and not self.merge_first_task:
            return
        moved = self._moved(pl_module)
        if math.isfinite(moved):
            self._distance, self._steps = self._distance + moved, self._steps + 1
            self._travelled += moved
        self._waited += 1
        due = self.should_merge(self.step_in_task, self.task_steps)
        super().on_task_step(trainer, pl_module, task)
        if due:
            self._travelled, self._waited = 0.0, 0
        self._remember(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return what :class:`~recall_lightning.RecallCallback` does, and the distances."""
        own = {name: getattr(self, f"_{name}") for name in _STATE}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        for name in _STATE:
            setattr(self, f"_{name}", state_dict[name])

    @torch.no_grad()
    def _moved(self, pl_module: LightningModule) -> float:
        pairs = [(w, self._before[n]) for n, w in _parameters(pl_module) if n in self._before]
        norms = [torch.linalg.vector_norm(w.float() - before.float()) for w, before in pairs]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def _remember(self, pl_module: LightningModule) -> None:
        for name, weight in _parameters(pl_module):
            before = self._before.get(name)
            if before is None or before.shape != weight.shape or before.device != weight.device:
                self._before[name] = weight.detach().clone()
            else:
                before.copy_(weight.detach())


_STATE = ("distance", "steps", "travelled", "waited")


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, w) for n, w in named_weights(module).items() if isinstance(w, nn.Parameter)]


METHOD = Method(
    "adaptive",
    "uniform averaging at adaptive intervals",
    AdaptiveInterval,
    keeps_first="merge_first_task",
)
