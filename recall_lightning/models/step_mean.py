"""The loss of an optimizer step as one mean, however its batches are cut."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

_KEY = "step_mean"


class StepMean:
    """Makes a step's loss the mean over all tokens, or samples, that it sees.

    Lightning takes the mean over accumulated batches of each batch's mean, and DDP that over
    processes, so a token of a short answer would count more than one of a long answer, and a step
    of accumulated batches would be another than that of the same rows in one batch. transformers
    has taken the mean over all of a step's tokens since 4.46 (2024), and so does this. How many
    those are is known with the last batch only: each batch's sum is divided by the number in the
    step's first batch (the processes' mean), and the step's gradients are multiplied by what that
    was off after its last backward: before AMP's scale is taken off, before callbacks see them in
    ``on_before_optimizer_step``, and before clipping.

    Attributes:
        share: What a mean over the current batch counts in this loss: whoever adds another loss of
            the batch, as its mean, multiplies it by this.
        mean: The step's loss so far; after its last batch that of all processes.
    """

    def __init__(self) -> None:
        self.share: Tensor | float = 1.0
        self.mean: Tensor = torch.tensor(torch.nan)
        self._sums: Tensor | None = None  # of the loss, and of what it is summed over
        self._reference: Tensor | None = None
        self._correction: Tensor | None = None
        self._loaded: dict[str, Any] | None = None

    def loss(self, module: LightningModule, batch_idx: int, total: Tensor, count: Tensor) -> Tensor:
        """Return what ``training_step`` returns.

        Args:
            module: The module that is trained.
            batch_idx: As ``training_step`` gets it.
            total: The sum of losses over the batch, ``()``.
            count: The number of tokens or samples that were summed over, ``()``; may be 0.
        """
        own = torch.stack([total.detach().float(), count.to(total.device, torch.float32)])
        self._correction, self.share = None, 1.0
        trainer = module._trainer
        if (
            trainer is None
            or not module.automatic_optimization
            or trainer.strategy.handles_gradient_accumulation
        ):
            self.mean = own[0] / own[1]
            return total / own[1].clamp(min=1)
        accumulated = trainer.accumulate_grad_batches
        if batch_idx % accumulated == 0 or self._sums is None:
            self._start(module, batch_idx, own)
        assert self._sums is not None
        assert self._reference is not None
        self._sums = sums = self._sums + own
        if not trainer.fit_loop._should_accumulate():
            sums = _over_processes(module, sums.clone())
            if accumulated > 1:
                summed = accumulated * trainer.world_size * self._reference
                self._correction = torch.where(sums[1] > 0, summed / sums[1], 1.0)
        self.share = own[1] / self._reference
        self.mean = sums[0] / sums[1]
        return total / self._reference

    def correct_gradients(self, module: LightningModule) -> None:
        """Make a step's gradients those of its mean; to be called in ``on_after_backward``."""
        correction, self._correction = self._correction, None
        if correction is None or (factor := correction.item()) == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def save(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what a step that is half accumulated goes on from; of one process."""
        trainer = module._trainer
        if trainer is None or trainer.world_size > 1 or self._sums is None:
            return
        assert self._reference is not None
        own = {"sums": self._sums.tolist(), "reference": self._reference.item()}
        checkpoint[_KEY] = own

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`save` added, for the case that the gradients come back, too."""
        self._sums, self._reference, self._loaded = None, None, checkpoint.get(_KEY)

    def _start(self, module: LightningModule, batch_idx: int, own: Tensor) -> None:
        loaded, self._loaded = self._loaded, None
        before = batch_idx % module.trainer.accumulate_grad_batches
        mean = _over_processes(module, own[1].clone()) / module.trainer.world_size
        self._reference = torch.where(mean > 0, mean, 1.0)
        self._sums = torch.zeros_like(own)
        if not before or all(p.grad is None for p in module.parameters()):
            return
        if loaded:
            self._sums = torch.tensor(loaded["sums"], dtype=own.dtype, device=own.device)
            self._reference = torch.full_like(mean, loaded["reference"])
        else:  # of an older checkpoint, whose batches were means
            self._sums = before * self._reference * torch.stack([own[0] / own[1], own[1] / own[1]])


def _over_processes(module: LightningModule, value: Tensor) -> Tensor:
    summed: Any = module.trainer.strategy.reduce(value, reduce_op="sum")
    return summed
