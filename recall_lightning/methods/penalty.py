"""A quadratic penalty on leaving the weights that a task started from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.gradients import amp_scale, optimized_weights
from recall_lightning.callbacks._trainer.left_out import tell_what_is_left_out
from recall_lightning.callbacks._trainer.stored_state import check_tensors, count_tensors
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.growth import is_new, new_since
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot


class PenaltyState(ProtectingState):
    """What a checkpoint holds of it."""

    anchor: dict[str, Tensor] | None


class QuadraticPenalty(ProtectingCallback):
    """Adds strength/2 · Σ importance · (θ − θ*)² to the loss; θ* is the weights at task start.

    It is added as its gradient, strength · importance · (θ − θ*), once an optimizer step: however
    many batches are accumulated and whatever AMP scales by, it is the gradient of a penalty that
    stands beside the mean loss. Clipping comes after and takes the sum of both. A weight without a
    gradient in a step is left alone, as the optimizer leaves it, and so is what is new in the task,
    such as a head's rows for new classes; of a sparse gradient only the rows in it get the penalty.
    A module's own hooks that read the loss do not see the penalty.

    Args:
        strength: What the penalty is multiplied by, 0 or more.
        from_first_task: Whether the weights before the first task are worth keeping.
        task_epochs: Epochs a task, only where no datamodule tells the task.

    Raises:
        MisconfigurationException: For a negative strength or a strategy that shards the weights.

    Attributes:
        anchor: θ*, the weights at the current task's start; None in a task without a penalty.
    """

    state_form: ClassVar[type] = PenaltyState

    def __init__(
        self,
        strength: float,
        from_first_task: bool = True,
        task_epochs: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not (strength >= 0 and math.isfinite(strength)):
            raise MisconfigurationException(f"strength={strength!r} must be a number from 0 on")
        self.strength = strength
        self.anchor: Snapshot | None = None
        self._unprotected: set[str] = set()  # what is not protected in this task

    def importance(self, name: str) -> Tensor | float:
        """Return what a weight's squared distance counts: a number, or a tensor of its shape."""
        return 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring the anchor to the device."""
        super().on_train_start(trainer, pl_module)
        tell_what_is_left_out(self, pl_module)
        if self.anchor is not None:
            self.anchor = self.anchor.to_devices_of(named_weights(pl_module))

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Take the anchor."""
        self._unprotected = set()
        try:
            self.anchor = Snapshot.take(pl_module) if self.protects else None
        except ValueError as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the penalty's gradient."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.anchor is None:
            return
        strength = self.strength * amp_scale(optimizer, pl_module)
        weights = optimized_weights(optimizer, pl_module)
        self._tell_unprotected(weights)
        new = new_since(self.clock.earlier_shapes, weights)
        for name, pull in self.pulls(weights):
            weight, pull = weights[name], strength * pull
            if weight.grad is None:
                continue
            if name in new:
                pull = pull.masked_fill(is_new(weight, new[name]), 0.0)
            if weight.grad.is_sparse:
                rows = weight.grad.coalesce()
                weight.grad = rows + pull.to(rows.dtype).sparse_mask(rows)
            else:
                weight.grad.add_(pull)

    def pulls(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield weights' names and the penalty's gradients, not yet multiplied by the strength.

        Args:
            weights: What the optimizer that steps changes, by name.
        """
        assert self.anchor is not None
        for name, weight in weights.items():
            if weight.grad is not None and name in self.anchor:
                yield name, self.importance(name) * (weight - self.anchor[name])

    def _tell_unprotected(self, weights: Mapping[str, Tensor]) -> None:
        """Say once which weights have no anchor."""
        assert self.anchor is not None
        late = weights.keys() - self.anchor.keys() - self._unprotected
        if late:
            self._unprotected |= late
            rank_zero_warn(
                f"{type(self).__name__} does not protect {', '.join(sorted(late)[:3])}"
                f"{' and more' if len(late) > 3 else ''} in this task: trainable under this name "
                "only since it began"
            )

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check the anchor's names and shapes."""
        check_tensors(self.anchor or {}, weights, "anchor")

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the anchor."""
        anchor = None if self.anchor is None else dict(self.anchor)
        state = {**super().state_dict(), "anchor": anchor}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        anchor = state_dict["anchor"]
        self.anchor = None if anchor is None else Snapshot(anchor)
