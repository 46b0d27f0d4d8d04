"""Whether a classifier's last layer is fitted anew with a task's last merge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.head_refit import HeadRefit, fitted_to
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.prepared_merge import PreparedMerge
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.recall.statistics.recent_batches import RecentBatches


class LastLayer:
    """Has a classifier's last layer fitted anew.

    Args:
        inputs: What it was given in earlier tasks; None where it is not fitted.
        run: How the model is run.
        recent: The batches that it is fitted to.
        tasks_count: Whether each earlier task counts at least once where the layer is fitted to
            enough of the current one, though that may leave less of the gain: a task of new classes
            takes from the old.
        only_new: Whether it is fitted only in a task most of whose classes are new.
        only_costly: Whether it is fitted, unless it has grown, only after a merge that costs much.
    """

    def __init__(
        self,
        inputs: HeadInputs | None,
        run: ModelRun,
        recent: RecentBatches,
        tasks_count: bool,
        only_new: bool,
        only_costly: bool,
    ) -> None:
        self._inputs, self._run, self._recent = inputs, run, recent
        self._tasks_count, self._only_new = tasks_count, only_new
        self.only_costly = only_costly

    @property
    def name(self) -> str | None:
        """The layer that is fitted at the task's end whatever its classes are, if one is."""
        inputs = None if self._only_new else self._inputs
        return inputs.layer if inputs is not None and inputs.tasks and inputs.covers_all else None

    def begin(self, context: TaskContext, prepared: PreparedMerge) -> HeadRefit | None:
        """Begin to fit it, where that is to be done and earlier tasks are known."""
        if self._inputs is None or not self._recent.batches:
            return None
        with self._run.ready(context) as view:
            batches = fitted_to(self._recent.batches, view)
        refit = HeadRefit.of(context, self._inputs, prepared, batches)
        if refit is None or (self._only_new and not refit.is_of_new_classes):
            return None
        return refit

    def later(self, refit: HeadRefit | None) -> Callable[[], None] | None:
        """Return what fits it after a merge that costs much without; None where every merge does.

        So does one of a layer that has grown: nothing has held back its new rows, which costs the
        current task nothing.
        """
        if refit is None or not self.only_costly or refit.has_grown:
            return None
        return partial(refit.write, 1.0, chosen=False)

    def least_keep(self, refit: HeadRefit | None) -> float:
        """Return how many times the old counts at least in a merge with which it is fitted."""
        return 1.0 if refit is not None and self._tasks_count and refit.counts_tasks else 0.0
