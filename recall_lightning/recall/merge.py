"""One merge: measure, decide and check everything, then write."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.merging.blockwise import Drift, merge_snapshots_, scaled_by, weights_of_names
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.odds import with_kept_odds
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.recall.buffers import recalibrate
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.plasticity import MeasuredPlasticity
from recall_lightning.recall.records import block_values
from recall_lightning.recall.settings import Buffers
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.trained_weights import TrainedWeights
from recall_lightning.weights.growth import is_new, new_since
from recall_lightning.weights.naming import find_weights, running_statistics
from recall_lightning.weights.sharding import reshard
from recall_lightning.weights.snapshot import Snapshot


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
    ) -> None:
        self._kept = kept
        self._statistics = statistics
        self._trained = trained
        self._buffers = buffers
        self._run = run
        self._recent = recent
        self._plasticity = plasticity
        self._drift: Drift | None = None

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
        measured = self._measured(context, rule, last)
        if measured is None:
            return None
        probed = time.perf_counter()
        newest = measured.snapshots[-1]
        if self._drift is None or self._drift.snapshot is not newest:
            self._drift = Drift(newest)
        drift = self._drift.by_block(measured.live, context.structure.blocks)
        # the drift has read every weight: where it is finite, they all are
        finite = all(map(math.isfinite, drift.values()))

        def merge(keep: float) -> tuple[list[dict[str, Coefficient]], dict[str, float]]:
            weights = self._weights(context, rule, measured, keep)
            discarded = _write(measured, weights, check_finite=not finite)
            if self._buffers == "recalibrate":
                recalibrate(context, self._run, self._recent.batches)
            return weights, discarded

        try:
            if last:
                live = {name: measured.live[name] for name in newest if name in measured.live}
                batches, predictions = self._recent.batches, self._statistics.predictions
                if self._buffers == "recalibrate":  # or the merge would be compared with stale ones
                    recalibrate(context, self._run, batches)
                (weights, discarded), found = self._plasticity.merge(
                    context, live, batches, merge, predictions
                )
            else:
                (weights, discarded), found = merge(1.0), {}
        except RefusedMergeError as error:
            step = context.trainer.global_step
            rank_zero_warn(f"merge refused at step {step}, weights kept: {error}")
            return None
        visits = {visit: context.clock.visits[visit] for visit in self._kept.visits}
        self._trained.merged()
        return {
            **block_values(visits, measured.inputs, weights, measured.merged_pairs, discarded),
            "drift": drift,
            **found,
            "probe_seconds": probed - started,
            "merge_seconds": time.perf_counter() - probed,
        }

    def _measured(self, context: TaskContext, rule: MergeRule, last: bool) -> _Measured | None:
        """Gather what the merge reads; None where there is nothing to merge, or not yet."""
        reshard(context.pl_module)
        live = find_weights(context.pl_module, context.snapshots[-1])
        context.snapshots[-1].check_shapes(live)
        left_out = self._trained.left_out(context)
        snapshots = [snapshot.without(left_out) for snapshot in context.snapshots]
        newest = snapshots[-1]
        if not newest or not self._statistics.prepare_merge(context, rule, last):
            return None
        new = new_since(
            context.clock.earlier_shapes, {n: w for n, w in live.items() if n in newest}
        )
        pairs = [p for p in context.structure.lora_pairs if {p.a, p.b} <= newest.keys()]
        for pair in pairs:  # an update is merged as a whole
            if new.keys() & {pair.a, pair.b}:
                new |= {pair.a: None, pair.b: None}
        inputs = [
            MergeInputs(context.structure, live, snapshot, **given)
            for snapshot, given in zip(snapshots, self._statistics.give(context, rule), strict=True)
        ]
        return _Measured(snapshots, live, inputs, pairs, new)

    def _weights(
        self, context: TaskContext, rule: MergeRule, measured: _Measured, keep: float
    ) -> list[dict[str, Coefficient]]:
        """Return what of each snapshot every weight takes."""
        snapshots, pairs, blocks = measured.snapshots, measured.pairs, context.structure.blocks
        given = rule.joint_coefficients([replace(own, keep=keep) for own in measured.inputs])
        if len(given) != len(snapshots):
            raise ValueError(
                f"the rule gave coefficients of {len(given)} models for {len(snapshots)} "
                "snapshot(s): give each one's; the live model has the rest"
            )
        weights = [weights_of_names(c, blocks, snapshots[-1], pairs) for c in given]
        weights = with_kept_odds(weights, keep)
        weights = [scaled_by(own, rule.strength, blocks, pairs) for own in weights]
        left = {name for name, shape in measured.new.items() if shape is None}
        if self._buffers != "merge":
            left |= set(running_statistics(context.pl_module))
        return [{n: w for n, w in own.items() if n not in left} for own in weights]


class RefusedMergeError(ValueError):
    """A merge would not have been finite; nothing was written."""


@dataclass(frozen=True)
class _Measured:
    """What a merge reads, however often it is tried.

    Attributes:
        snapshots: What is merged of each.
        live: Name to live weight.
        inputs: What the rule is given for each snapshot.
        pairs: The LoRA updates among the weights.
        new: What has come or grown in this task: its name to the shape that it had, or None.
    """

    snapshots: list[Snapshot]
    live: Mapping[str, torch.Tensor]
    inputs: list[MergeInputs]
    pairs: list[LoraPair]
    new: Mapping[str, list[int] | None]

    @property
    def merged_pairs(self) -> list[LoraPair]:
        """Those that the snapshot knows."""
        return [pair for pair in self.pairs if pair.a not in self.new]


def _write(
    measured: _Measured, weights: list[dict[str, Coefficient]], check_finite: bool
) -> dict[str, float]:
    """Merge in place; return what LoRA updates have lost on their way back to their rank."""
    snapshots, pairs = measured.snapshots, measured.merged_pairs
    with _new_parts_kept(measured.live, measured.new):
        try:
            return merge_snapshots_(measured.live, snapshots, weights, pairs, check_finite, False)
        except ValueError as error:
            raise RefusedMergeError(str(error)) from error


@contextmanager
def _new_parts_kept(
    live: Mapping[str, torch.Tensor], new: Mapping[str, list[int] | None]
) -> Iterator[None]:
    """Leave what is new of grown weights as it was, whatever is written inside."""
    grown = {name: shape for name, shape in new.items() if shape is not None}
    kept = {name: live[name].detach().clone() for name in grown}
    yield
    with torch.no_grad():
        for name, shape in grown.items():
            live[name].copy_(torch.where(is_new(live[name], shape), kept[name], live[name]))
