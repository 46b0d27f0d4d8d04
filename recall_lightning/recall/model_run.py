"""Running the user's model on batches, for what its hidden states and inputs tell."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.forward import ProbeForward, default_forward
from recall_lightning.weights.sharding import reshard

Measured = TypeVar("Measured")


class ProbeRun:
    """How a module is run on a training batch, in the Trainer's precision and without logging.

    Args:
        probe_forward: Runs the module on a batch; None works the inputs out.

    Attributes:
        blocks: The model's blocks, which tell the part of the module that computes them.
    """

    def __init__(self, probe_forward: ProbeForward | None = None) -> None:
        self.probe_forward = probe_forward
        self.blocks: Sequence[Block] = []

    @contextmanager
    def ready(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Iterator[Callable[[torch.nn.Module, Any], Any]]:
        """Give what runs the module on a batch; it raises a ValueError where that fails."""
        try:
            with trainer.precision_plugin.forward_context(), _silent(pl_module):
                yield self._forward
        finally:
            reshard(pl_module)

    def evenly(
        self, trainer: Trainer, batches: Sequence[Any], measure: Callable[[Sequence[Any]], Measured]
    ) -> Measured:
        """Return ``measure(batches)``, where all processes run a sharded model equally often.

        Each forward gathers weights from all of them, so one of fewer batches repeats its first.
        """
        if is_sharded(trainer):
            own = torch.tensor(float(len(batches)), device=trainer.strategy.root_device)
            most = int(trainer.strategy.reduce(own, reduce_op="max"))
            if most > len(batches):
                measure([batches[0]] * (most - len(batches)))
        return measure(batches)

    def _forward(self, module: torch.nn.Module, batch: Any) -> Any:
        own = self.probe_forward
        try:
            if own is not None:
                return own(module, batch)
            return default_forward(module, batch)
        except Exception as error:
            ran = type(module).__name__ if own is None else "your probe_forward"
            advice = ": pass probe_forward=lambda module, batch: module(…)" if own is None else ""
            entries = f" with entries {', '.join(batch)}" if isinstance(batch, Mapping) else ""
            raise ValueError(
                f"{ran} could not be run on a training batch ({type(batch).__name__}{entries}) "
                f"to measure hidden states or moments{advice}; {type(error).__name__}: {error}"
            ) from error


@contextmanager
def _silent(pl_module: LightningModule) -> Iterator[None]:
    """Keep what a forward logs out of the loggers."""
    own: dict[str, Any] = {
        name: vars(pl_module)[name] for name in ("log", "log_dict") if name in vars(pl_module)
    }
    vars(pl_module).update(log=lambda *_, **__: None, log_dict=lambda *_, **__: None)
    try:
        yield
    finally:
        del vars(pl_module)["log"], vars(pl_module)["log_dict"]
        vars(pl_module).update(own)
