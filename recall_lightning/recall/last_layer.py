"""Whether a classifier's last layer is fitted anew with a task's last merge."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.measuring.predictions.categorical import Categorical
from recall_lightning.measuring.view import CausalView
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.head_refit import HeadRefit, fitted_to
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.prepared_merge import PreparedMerge
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches


class LastLayer:
    """Has a classifier's last layer fitted anew, or says once that it could be.

    Args:
        inputs: What it was given in earlier tasks; None where it is not fitted.
        statistics: Tell what is known of the model's predictions.
        run: How the model is run.
        recent: The batches that it is fitted to.
        tasks_count: Whether each earlier task counts at least once where the layer is fitted to
            enough of the current one, though that may leave less of the gain: a task of new classes
            takes from the old.
        is_suggested: Whether it is said of a layer that grows, and is not fitted, that it may be.
    """

    def __init__(
        self,
        inputs: HeadInputs | None,
        statistics: NeededStatistics,
        run: ModelRun,
        recent: RecentBatches,
        tasks_count: bool,
        is_suggested: bool,
    ) -> None:
        self._inputs, self._statistics, self._run, self._recent = inputs, statistics, run, recent
        self._tasks_count, self._is_suggested = tasks_count, is_suggested

    @property
    def name(self) -> str | None:
        """The layer that is fitted at a task's end, once there are earlier tasks."""
        inputs = self._inputs
        return inputs.layer if inputs is not None and inputs.tasks and inputs.covers_all else None

    def begin(self, context: TaskContext, prepared: PreparedMerge) -> HeadRefit | None:
        """Begin to fit it, where that is to be done and earlier tasks are known."""
        if self._inputs is None:
            self._suggest(context, prepared)
        if self._inputs is None or not self._recent.batches:
            return None
        with self._run.ready(context) as view:
            batches = fitted_to(self._recent.batches, view)
        return HeadRefit.of(context, self._inputs, prepared, batches)

    def least_keep(self, refit: HeadRefit | None) -> float:
        """Return how many times the old counts at least in a merge with which it is fitted."""
        return 1.0 if refit is not None and self._tasks_count and refit.counts_tasks else 0.0

    def _suggest(self, context: TaskContext, prepared: PreparedMerge) -> None:
        predictions = self._statistics.predictions
        of_classes = predictions is not None and isinstance(predictions.kind, Categorical)
        if not (self._is_suggested and of_classes and "curvature" in prepared.rule.needs):
            return
        with self._run.ready(context) as view:
            grown = None if isinstance(view, CausalView) else _grown(context, prepared)
        if grown is not None:
            rank_zero_warn(
                f"RecallCallback: {grown} has more rows than before this task, and nothing keeps "
                "those from taking inputs of the classes before: set refit_head=True to have the "
                "whole layer fitted anew at each task's end, or False to leave it so"
            )
            self._is_suggested = False


def _grown(context: TaskContext, prepared: PreparedMerge) -> str | None:
    """Return the last linear layer that has more outputs than before the task, if one has."""
    for each in reversed(context.structure.maps):
        shape = prepared.new.get(each.weight)
        if each.kind == "linear" and shape and shape[0] < len(prepared.live[each.weight]):
            return each.modules[0]
    return None
