"""What one training step tells of the model's predictions: its loss is made of its outputs."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.blocks import has_parameters
from recall_lightning.measuring.forward import called_module, is_compiled_in_place
from recall_lightning.measuring.predictions.loss import LossEvidence, evidence_in
from recall_lightning.measuring.view import ModelView


class TrainingLoss:
    """Listens to what a LightningModule or its children put out, until a loss has been told.

    Nothing is computed, and what they return is left as it is.

    Attributes:
        is_awaited: Whether it listens.
    """

    def __init__(self) -> None:
        self.is_awaited = False
        self._handles: list[RemovableHandle] = []
        self._outputs: list[tuple[nn.Module, Tensor]] = []
        self._called: nn.Module | None = None  # what a view calls to have the model's outputs

    def listen(self, module: nn.Module, view: ModelView, shape: torch.Size, own_view: bool) -> None:
        """Start to listen.

        Args:
            module: The LightningModule.
            view: Finds logits in what a module returns.
            shape: That of the logits which the view finds in what the model returns for this batch:
                others are of other parts.
            own_view: Whether the view is the user's own, and what it calls is not known.
        """
        self.stop()
        self.is_awaited = True
        with suppress(ValueError):
            self._called = None if own_view else called_module(module)

        def hear(child: nn.Module, args: Any, output: Any) -> None:
            logits = None
            if torch.is_grad_enabled():
                with suppress(Exception):  # a view of the user's knows its own outputs alone
                    logits = view.logits(output)
            if logits is not None and logits.requires_grad and logits.shape == shape:
                self._outputs.append((child, logits))

        self._handles = [child.register_forward_hook(hear) for child in _who_may_predict(module)]

    def told(self, loss: Tensor) -> tuple[LossEvidence | None, bool]:
        """Return what a loss tells, and whether of what a view puts out; stop to listen."""
        outputs = self._outputs
        called = self._called
        self.stop()
        found = {
            child: evidence_in(loss, [logits for one, logits in outputs if one is child])
            for child in dict.fromkeys(child for child, _ in outputs)
        }
        of_called = None if called is None else found.get(called)
        if of_called is not None:
            return of_called, True
        others = {evidence for evidence in found.values() if evidence is not None}
        return (others.pop() if len(others) == 1 else None), False

    def start_step(self) -> None:
        """Forget what a step without a loss has left, and its graph with it."""
        self._outputs.clear()

    def stop(self) -> None:
        """Leave the modules alone, and forget what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._outputs, self._called, self.is_awaited = [], [], None, False


def _who_may_predict(module: nn.Module) -> Iterator[nn.Module]:
    for child in (module, *module.children()):
        if has_parameters(child) and not is_compiled_in_place(child):
            yield child
