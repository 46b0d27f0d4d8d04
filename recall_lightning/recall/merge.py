"""One merge: measure, decide and check everything, then write."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.merging.blockwise import Drift
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.quadratic_forgetting import quadratic_forgetting
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.recall.buffers import recalibrate
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.head_refit import HeadRefit
from recall_lightning.recall.last_layer import LastLayer
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.plasticity import MeasuredPlasticity
from recall_lightning.recall.prepared_merge import (
    PreparedMerge,
    PreparedState,
    RefusedMergeError,
)
from recall_lightning.recall.records import block_values, of_both
from recall_lightning.recall.settings import Buffers
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.statistics.step_sizes import StepSizes
from recall_lightning.recall.trained_weights import TrainedWeights
from recall_lightning.recall.written_divergence import WrittenDivergence
from recall_lightning.weights.growth import new_since
from recall_lightning.weights.naming import find_weights, running_statistics
from recall_lightning.weights.sharding import reshard
from recall_lightning.weights.snapshot import Snapshot

_Merged = TypeVar("_Merged")


class SnapshotMerge:
    """Merges the kept snapshots into the live model, with the weights that a rule gives them.

    What is new in the current task, such as a head's rows for new classes, is left as it is
    trained: the snapshot has only its first values there.

    Args:
        kept: The snapshots.
        statistics: What rules decide from.
        trained: Tells which weights are merged.
        buffers: What happens to running statistics of normalisation layers.
        run: How the model is run on a batch, to measure those anew.
        recent: The batches for that.
        plasticity: Decides how much of the old a task's last merge keeps.
        last_layer: Has a classifier's last layer fitted anew with a task's last merge.
        steps: Those that a merge within a task stands for, whose number and size a penalty has.
        keep_live: Whether a task's last merge stays known, so that it can be made anew; ``"auto"``
            where an adapter is merged.
    """

    def __init__(
        self,
        kept: KeptSnapshots,
        statistics: NeededStatistics,
        trained: TrainedWeights,
        buffers: Buffers,
        run: ModelRun,
        recent: RecentBatches,
        plasticity: MeasuredPlasticity,
        last_layer: LastLayer,
        steps: StepSizes,
        keep_live: bool | Literal["auto"] = "auto",
    ) -> None:
        self._kept = kept
        self._statistics = statistics
        self._trained = trained
        self._buffers = buffers
        self._run = run
        self._recent = recent
        self._plasticity = plasticity
        self._last_layer = last_layer
        self._steps = steps
        self._keep_live = keep_live
        self._drift: Drift | None = None
        self._last: PreparedState | None = None
        self._last_rule: MergeRule | None = None  # of the last merge of the task that ends

    def take_last(self) -> PreparedState | None:
        """Hand over what the task's last merge was made from; None where it is not to be known."""
        last, self._last = self._last, None
        return last

    def check_batch(self, context: TaskContext, batch: Any) -> None:
        """Try to run the model on a batch, where running statistics will be measured anew.

        Raises:
            ValueError: If it cannot be run.
        """
        if self._buffers == "recalibrate" and running_statistics(context.pl_module):
            with undisturbed(context.pl_module), self._run.ready(context) as view:
                view.forward(context.pl_module, detached(batch))  # it may write into it
        if context.snapshots:
            self._plasticity.check_batch(context, batch)

    def apply(self, context: TaskContext, rule: MergeRule, last: bool) -> dict[str, Any] | None:
        """Merge in place, or write nothing: where the rule cannot decide yet, or with a warning.

        Args:
            context: The task, with its snapshots.
            rule: Gives each block its coefficients.
            last: Whether this is the task's last merge, which may cost the task but a measured part
                of what it has gained.

        Returns:
            What an entry of ``RecallCallback.history`` says of the merge; None without one.

        Raises:
            ValueError: If something cannot be measured, or the rule's coefficients don't fit.
        """
        started = time.perf_counter()
        self._last = None
        prepared = self._prepared(context, rule, last)
        if prepared is None:
            return None
        probed = time.perf_counter()
        newest = prepared.inputs[-1].snapshot
        assert isinstance(newest, Snapshot)
        if self._drift is None or self._drift.snapshot is not newest:
            self._drift = Drift(newest)
        drift = self._drift.by_block(prepared.live, context.structure.blocks)
        # the drift has read every weight: where it is finite, they all are
        finite = all(map(math.isfinite, drift.values()))
        if last:
            head = self._last_layer.begin(context, prepared)
            refitted = None if head is None else head.layer
        else:
            head, refitted = None, self._last_layer.name
        fit_later = self._last_layer.later(head)
        forgotten = partial(quadratic_forgetting, prepared.inputs[-1])
        layers = {refitted} if fit_later is None else {refitted, None}
        forgotten_live = {layer: forgotten(refitted=layer) for layer in layers}

        def merge(
            keep: float, chosen: bool = False
        ) -> tuple[list[dict[str, Coefficient]], dict[str, float]]:
            weights = prepared.weights(keep)
            discarded = prepared.write(weights, check_finite=not finite)
            if self._buffers == "recalibrate":
                recalibrate(context, self._run, self._recent.batches)
            if head is not None and fit_later is None:
                head.write(keep, chosen)
            return weights, discarded

        try:
            if last:
                (weights, discarded), found = self._merge_last(
                    context, prepared, merge, head, fit_later
                )
            elif rule.is_proximal:
                found = {"keep": self._steps.share}
                weights, discarded = merge(found["keep"])
            else:
                (weights, discarded), found = merge(1.0), {}
        except RefusedMergeError as error:
            step = context.clock.steps_trained(context.trainer)
            rank_zero_warn(f"merge refused at step {step}, weights kept: {error}")
            return None
        visits = {visit: context.clock.visits[visit] for visit in self._kept.visits}
        self._trained.merged()
        self._steps.merged()
        if last:
            refitted, self._last_rule = found.get("refitted"), rule
        return {
            **block_values(visits, prepared.inputs, weights, prepared.merged_pairs, discarded),
            "drift": drift,
            **of_both(
                "quadratic_forgetting", forgotten_live[refitted], forgotten(refitted=refitted)
            ),
            **found,
            "probe_seconds": probed - started,
            "merge_seconds": time.perf_counter() - probed,
        }

    def end_task(self, context: TaskContext) -> None:
        """Learn what the task depends on, and find what the next one's merges are to keep.

        Where a merge leaves a task most of its gain, the new counts more in it than all that came
        before. Of a model whose knowledge before its first task is measured, the next snapshot is
        therefore another merge than the one that was made: of that and the snapshot so far, in
        which each task and that knowledge count once. So every task is kept where it was good, and
        not where the last one has left it, as in EWC with a penalty a task (Kirkpatrick et al.,
        arXiv 1612.00796). A classifier whose last layer is fitted anew is left out: that is fitted
        to what the snapshot predicts.
        """
        self._statistics.end_task(context)
        rule, self._last_rule = self._last_rule, None
        ended = self._statistics.take_ended()
        self._kept.next = None
        if rule is None or not ended or self._plasticity.share is None:
            return
        if not rule.weighs_moments or self._last_layer.name is not None:
            return
        live = find_weights(context.pl_module, context.snapshots[-1])
        snapshot = context.snapshots[-1].without(self._trained.left_out(context))
        prepared = self._prepared_of(context, rule, [snapshot], live, [ended]).copied()
        with suppress(RefusedMergeError):
            prepared.write(prepared.weights(1.0))
            self._kept.keep_next(prepared.live)

    def _merge_last(
        self,
        context: TaskContext,
        prepared: PreparedMerge,
        merge: Callable[[float, bool], _Merged],
        head: HeadRefit | None,
        fit_later: Callable[[], None] | None,
    ) -> tuple[_Merged, dict[str, Any]]:
        """Make a task's last merge, with the balance that plasticity asks for."""
        batches, predictions = self._recent.batches, self._statistics.predictions
        if self._buffers == "recalibrate":  # or the merge would be compared with stale ones
            recalibrate(context, self._run, batches)
        written = self._statistics.written
        of_written = WrittenDivergence(context, written) if written else None
        live = None if of_written is None else of_written.measured(context)
        before = None if self._plasticity.share is None else prepared.copied()
        made, found = self._plasticity.merge(
            context,
            prepared.live,
            before.live if before else None,
            batches,
            merge,
            predictions,
            self._last_layer.least_keep(head),
            fit_later,
        )
        keeps = bool(context.structure.lora_pairs) if self._keep_live == "auto" else self._keep_live
        if before is not None and keeps and found.get("front"):
            self._last = before.state_dict()
            if head is not None:
                self._last["heads"] = head.state_dict()
        if head is not None and head.is_fitted:
            found["refitted"] = head.layer
        if of_written is not None:
            found |= of_both("written_divergence", live, of_written.measured(context))
        return made, found

    def _prepared(self, context: TaskContext, rule: MergeRule, last: bool) -> PreparedMerge | None:
        """Gather what the merge reads; None where there is nothing to merge, or not yet."""
        reshard(context.pl_module)
        live = find_weights(context.pl_module, context.snapshots[-1])
        context.snapshots[-1].check_shapes(live)
        left_out = self._trained.left_out(context)
        snapshots = [snapshot.without(left_out) for snapshot in context.snapshots]
        newest = snapshots[-1]
        if not newest or not self._statistics.prepare_merge(context, rule, last):
            return None
        given = self._statistics.give(context, rule)
        return self._prepared_of(context, rule, snapshots, live, given)

    def _prepared_of(
        self,
        context: TaskContext,
        rule: MergeRule,
        snapshots: Sequence[Snapshot],
        live: Mapping[str, Tensor],
        given: Sequence[Mapping[str, Any]],
    ) -> PreparedMerge:
        newest = snapshots[-1]
        new = new_since(
            context.clock.earlier_shapes, {n: w for n, w in live.items() if n in newest}
        )
        pairs = [p for p in context.structure.lora_pairs if {p.a, p.b} <= newest.keys()]
        for pair in pairs:  # an update is merged as a whole
            if new.keys() & {pair.a, pair.b}:
                new |= {pair.a: None, pair.b: None}
        inputs = [
            MergeInputs(context.structure, live, snapshot, **own)
            for snapshot, own in zip(snapshots, given, strict=True)
        ]
        left = set()
        if self._buffers != "merge":
            left = set(running_statistics(context.pl_module))
        return PreparedMerge(rule, inputs, new, frozenset(left))
