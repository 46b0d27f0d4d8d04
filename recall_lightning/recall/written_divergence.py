"""How far a language model has gone from its snapshot on what it wrote before its first task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.recall.compared_predictions import ComparedPredictions
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.divergence import mean_divergence
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.statistics.prior import view_of_writer


class WrittenDivergence:
    """KL(snapshot ‖ model), in nats a token, on sequences that the model wrote itself.

    Args:
        context: The task, with the snapshot that the model is compared with, the newest.
        written: The sequences, on the model's device.
    """

    def __init__(self, context: TaskContext, written: Sequence[Mapping[str, Tensor]]) -> None:
        self._found = FoundPredictions("classes")
        run = ModelRun(view_of_writer(context.pl_module))
        self._compared = ComparedPredictions(context, run, self._found, written)
        with context.snapshots[-1].applied_to(context.pl_module):
            self._then = self._compared.taken(context)

    def measured(self, context: TaskContext) -> float | None:
        """Return it under the weights as they are; None where the model cannot be run on them."""
        return mean_divergence(context, self._found, self._then, self._compared.taken(context))
