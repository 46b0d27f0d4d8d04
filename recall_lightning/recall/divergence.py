"""How far a model's predictions have gone from its snapshot's, on data that is at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.process_means import sum_over_processes
from recall_lightning.recall.statistics.recent_batches import last_with

_PREDICTIONS = 512  # that are compared, of each process: vocabularies are large


class SnapshotDivergence:
    """KL(snapshot ‖ model), in nats a prediction, on the last batches.

    What is compared are up to 512 samples or tokens that count, of as many of the last batches as
    hold those. It foretells what is forgotten elsewhere ("RL's Razor", arXiv 2509.04259, which
    measures it on the new task's inputs, too).

    Args:
        context: The task. The model has its snapshot's weights at the moment.
        run: How the model is run.
        found: Of which kind its predictions are.
        batches: On the model's device.
    """

    def __init__(
        self, context: TaskContext, run: ModelRun, found: FoundPredictions, batches: Sequence[Any]
    ) -> None:
        self._run, self._found = run, found
        view = view_of(context.pl_module, run.view)
        self._batches = last_with(batches, _PREDICTIONS, view)
        self._snapshots = self._outputs(context)

    def measured(self, context: TaskContext) -> float | None:
        """Return it under the model's weights as they are; None where predictions are not known."""
        total, count = self._compared(self._outputs(context))
        count = int(sum_over_processes(context.trainer, float(count)))
        finite = math.isfinite(total)
        failed = sum_over_processes(context.trainer, float(not finite))
        total = sum_over_processes(context.trainer, total if finite else 0.0)
        if not count:
            return None
        return math.inf if failed else total / count

    def _compared(self, outputs: list[Tensor] | None) -> tuple[float, int]:
        """Return the sum over this process's predictions, and how many they are."""
        kind = self._found.kind
        if kind is None or not outputs or not self._snapshots:
            return 0.0, 0
        try:
            pairs = zip(outputs, self._snapshots, strict=True)
            each = torch.cat([kind.divergence(new, old) for new, old in pairs])
        except ValueError:  # a distribution of which no divergence is known
            return 0.0, 0
        return float(each.double().sum()), each.numel()

    def _outputs(self, context: TaskContext) -> list[Tensor] | None:
        """Return what the model puts out for the predictions that are compared, batch by batch."""
        module = context.pl_module

        def of_batches(some: Sequence[Any]) -> list[Tensor]:
            each = [self._of_batch(view, view.forward(module, detached(one)), one) for one in some]
            return [rows for rows in each if rows is not None]

        try:
            with undisturbed(module), self._run.ready(context) as view, torch.no_grad():
                return self._run.evenly(context.trainer, self._batches, of_batches)
        except ValueError:  # the model cannot be run on a batch, or its predictions are not clear
            return None

    def _of_batch(self, view: ModelView, output: Any, batch: Any) -> Tensor | None:
        """Return the parameters of a batch's predictions, (predictions, parameters) float32."""
        outputs, targets = view.logits(output), view.targets(batch)
        if outputs is None or self._found.of(outputs, targets, view.inputs(batch)) is None:
            return None
        parameters = self._found.to_parameters(outputs, targets)(outputs)
        rows = parameters[view.counts(batch, parameters[..., 0])]
        most = max(1, _PREDICTIONS // len(self._batches))
        return rows[:: max(1, math.ceil(len(rows) / most))].float()
