"""What is forgotten while a task trains, told a few times before its end."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from recall_lightning.merging.quadratic_forgetting import quadratic_forgetting
from recall_lightning.merging.rules import MergeInputs
from recall_lightning.recall.compared_predictions import ComparedPredictions
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.divergence import mean_divergence
from recall_lightning.recall.last_layer import LastLayer
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.plasticity import COMPARED_BATCHES
from recall_lightning.recall.records import ESTIMATES, log_merge
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.weights.naming import find_weights
from recall_lightning.weights.sharding import reshard

_TIMES = 10  # a task
_APART = 400  # steps at least: one costs as much as a step or two


def estimate_is_due(step_in_task: int, task_steps: int | None) -> bool:
    """Tell whether one is made after a step without a merge.

    >>> [step for step in range(1, 1000) if estimate_is_due(step, 3000)]
    [400, 800]
    """
    return step_in_task % max(_APART, (task_steps or 0) // _TIMES) == 0


class EstimateState(TypedDict):
    """What a checkpoint holds of the last ones: they are of live weights."""

    visit: int | None
    step: int
    divergence: NotRequired[dict[str, float]]
    quadratic_forgetting: NotRequired[dict[str, float]]


class TrainingEstimates:
    """Estimates ten times a task, and not more often than every 400 steps, what is forgotten.

    That is by the ``divergence`` of the live weights from the snapshot on the current batch, at a
    task's end on the last ones, and, once something is known of earlier tasks, by their
    ``quadratic_forgetting``.

    Args:
        statistics: What is known of earlier tasks.
        last_layer: A classifier's, which does not count where it is fitted at a task's end.
        run: How the model is run.
        recent: The last batches.

    Attributes:
        last: The last ones of the task.
    """

    def __init__(
        self,
        statistics: NeededStatistics,
        last_layer: LastLayer,
        run: ModelRun,
        recent: RecentBatches,
    ) -> None:
        self.last: EstimateState | None = None
        self._statistics, self._last_layer = statistics, last_layer
        self._run, self._recent = run, recent

    def observe_step(self, context: TaskContext) -> None:
        """After a step without a merge, estimate and log if it is time."""
        clock = context.clock
        if not clock.task_ended and estimate_is_due(clock.step_in_task, clock.task_steps):
            self.estimate(context)

    def estimate(self, context: TaskContext) -> None:
        """Estimate and log what the weights as they are have forgotten, where that is known."""
        if context.snapshots and self._statistics.predictions is not None:
            self.last = self.measured(context)
            log_merge(context.trainer, self.last)

    def measured(self, context: TaskContext) -> EstimateState:
        """Return what is estimated of the weights as they are."""
        clock = context.clock
        found: EstimateState = {
            "visit": clock.visit,
            "step": clock.steps_trained(context.trainer),
        }
        divergence, forgotten = self._divergence(context), self._forgotten(context)
        if divergence is not None:
            found["divergence"] = {"live": divergence}
        if forgotten is not None:
            found["quadratic_forgetting"] = {"live": forgotten}
        return found

    def latest(self, history: Sequence[Mapping[str, Any]], visit: int | None) -> dict[str, float]:
        """Return the estimates of a visit's weights by name: of its last merge, or since then.

        ``estimated_forgetting`` is their divergence from the snapshot on the task's own inputs,
        which of all that is measured foretells best on average what will turn out to be forgotten.
        It is not known after a merge that has not measured it, as one that was made again.

        Args:
            history: The merges.
            visit: The number of the visit.
        """
        told: list[Mapping[str, Any]] = [*history[-1:], *([] if self.last is None else [self.last])]
        own = [each for each in told if each["visit"] == visit and "rolled_back" not in each]
        if not own:
            return {}
        newest = max(reversed(own), key=lambda each: each["step"])
        known = {
            name: newest[measured] for name, measured in ESTIMATES.items() if measured in newest
        }
        return {name: each.get("merged", each["live"]) for name, each in known.items()}

    def _forgotten(self, context: TaskContext) -> float | None:
        snapshot = context.snapshots[-1]
        reshard(context.pl_module)
        live = find_weights(context.pl_module, snapshot)
        live = {name: now for name, now in live.items() if now.shape == snapshot[name].shape}
        known = self._statistics.of_earlier_tasks
        inputs = MergeInputs(context.structure, live, snapshot, **known)
        forgotten = quadratic_forgetting(inputs, refitted=self._last_layer.name)
        # weights that are no numbers have forgotten everything
        return math.inf if forgotten is not None and math.isnan(forgotten) else forgotten

    def _divergence(self, context: TaskContext) -> float | None:
        batches = self._recent.batches[-COMPARED_BATCHES if context.clock.task_ended else -1 :]
        if not batches:
            return None
        found = copy.copy(self._statistics.predictions)  # what merges go by stays as it is
        assert found is not None
        compared = ComparedPredictions(context, self._run, found, batches)
        now = compared.taken(context)
        with context.snapshots[-1].applied_to(context.pl_module):
            then = compared.taken(context)
        return mean_divergence(context, found, then, now)
