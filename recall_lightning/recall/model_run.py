"""Running the user's model on batches, for what its hidden states and inputs tell."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.measuring.batches import entries_of
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.context import TaskContext
from recall_lightning.weights.sharding import reshard

Measured = TypeVar("Measured")


class ModelRun:
    """How a module is run on a training batch, in the Trainer's precision and without logging.

    Args:
        view: The user's own view of the model, or what runs it on a batch; None finds it.
    """

    def __init__(self, view: ModelView | ProbeForward | None = None) -> None:
        self.view = view

    @contextmanager
    def ready(self, context: TaskContext) -> Iterator[ModelView]:
        """Give the view of the model, which raises a ValueError where running it fails."""
        view = view_of(context.pl_module, self.view)

        def forward(module: torch.nn.Module, batch: Any) -> Any:
            try:
                return view.forward(module, batch)
            except Exception as error:
                raise ValueError(self._what_failed(module, batch, error)) from error

        with self.quietly(context):
            yield view.with_forward(forward)

    @contextmanager
    def quietly(self, context: TaskContext) -> Iterator[None]:
        """Have the module run in the Trainer's precision inside the block, and log nothing."""
        try:
            with context.trainer.precision_plugin.forward_context(), _silent(context.pl_module):
                yield
        finally:
            reshard(context.pl_module)

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

    def _what_failed(self, module: torch.nn.Module, batch: Any, error: Exception) -> str:
        ran = type(module).__name__ if self.view is None else "your view"
        advice = ": pass view=lambda module, batch: module(…)" if self.view is None else ""
        named = entries_of(batch)
        entries = "" if named is None else f" with entries {', '.join(map(str, named))}"
        return (
            f"{ran} could not be run on a training batch ({type(batch).__name__}{entries}) to "
            f"measure hidden states or moments{advice}; {type(error).__name__}: {error}"
        )


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
