"""What tells that the data is other than before: the loss, and hidden states in training."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.change import RunningDistance, mean_vector
from recall_lightning.measuring.hidden_states import first_tensor
from recall_lightning.weights.naming import named_submodules


class TrainingSignals:
    """Reads the loss and what a block puts out while batches are trained; runs nothing itself.

    Args:
        names: Which signals are read, of ``"loss"`` and ``"representations"``.

    Attributes:
        distance: The baseline that hidden states are compared with.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.distance = RunningDistance()
        self._losses: list[Tensor] = []
        self._states: list[Tensor] = []  # of this step's batches, (width,) each
        self._handle: RemovableHandle | None = None
        self._trains = False

    def listen(self, pl_module: LightningModule, blocks: Sequence[Block]) -> None:
        """Start to listen to the last block before the one that predicts, or the only one."""
        self.stop()
        if "representations" not in self.names:
            return
        modules = named_submodules(pl_module)
        inner = [block for block in blocks if block.output in modules]
        if inner:
            listened = modules[inner[-2 if len(inner) > 1 else 0].output]
            self._handle = listened.register_forward_hook(self._hear)

    def stop(self) -> None:
        """Leave the model alone, and forget what was heard of a step."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._losses, self._states = [], []

    def start_batch(self) -> None:
        """Hear what comes until :meth:`take`: it is of training."""
        self._trains = True

    def observe_loss(self, loss: Tensor) -> None:
        """See a loss before it is run backward."""
        self._losses.append(loss.detach())

    def take(self, trainer: Trainer, hold: bool = False) -> dict[str, float]:
        """Return each signal of the step that has been done, as the mean over all processes.

        NaN where there is none, as after a loss of None.

        Args:
            trainer: The Trainer.
            hold: Whether to leave the baseline of the hidden states as it is.
        """
        found = {}
        if "loss" in self.names:
            found["loss"] = _over_processes(trainer, self._losses)
        if "representations" in self.names:
            found["representations"] = _over_processes(trainer, self._states)
        self._losses, self._states, self._trains = [], [], False
        vectors = found.pop("representations", None)
        signals = {name: math.nan if v is None else float(v) for name, v in found.items()}
        if "representations" in self.names:
            far = math.nan if vectors is None else self.distance.update(vectors, hold)
            signals["representations"] = far
        return signals

    def _hear(self, module: nn.Module, args: Any, output: Any) -> None:
        states = first_tensor(output) if self._trains and torch.is_grad_enabled() else None
        if states is not None and states.ndim > 1 and states.is_floating_point():
            self._states.append(mean_vector(states))


def _over_processes(trainer: Trainer, values: list[Tensor]) -> Tensor | None:
    if not values or any(value.shape != values[0].shape for value in values):
        return None
    mean = torch.stack([value.float() for value in values]).mean(dim=0)
    return trainer.strategy.reduce(mean, reduce_op="mean")
