"""One merge: measure, decide and check everything, then write."""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.merging.blockwise import Drift, merge_snapshots_, scaled_by, weights_of_names
from recall_lightning.merging.odds import with_kept_odds
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.recall.buffers import recalibrate
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.records import block_values
from recall_lightning.recall.settings import Buffers
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.trained_weights import TrainedWeights
from recall_lightning.weights.growth import is_new, new_since
from recall_lightning.weights.naming import find_weights, running_statistics
from recall_lightning.weights.sharding import reshard


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
    """

    def __init__(
        self,
        kept: KeptSnapshots,
        statistics: NeededStatistics,
        trained: TrainedWeights,
        buffers: Buffers,
        run: ModelRun,
        recent: RecentBatches,
    ) -> None:
        self._kept = kept
        self._statistics = statistics
        self._trained = trained
        self._buffers = buffers
        self._run = run
        self._recent = recent
        self._drift: Drift | None = None

    def check_batch(self, context: TaskContext, batch: Any) -> None:
        """Try to run the model on a batch, where running statistics will be measured anew.

        Raises:
            ValueError: If it cannot be run.
        """
        if self._buffers == "recalibrate" and running_statistics(context.pl_module):
            with undisturbed(context.pl_module), self._run.ready(context) as view:
                view.forward(context.pl_module, copy.copy(batch))  # it may pop what it takes

    def apply(
        self, context: TaskContext, rule: MergeRule, keep: float, last: bool
    ) -> dict[str, Any] | None:
        """Merge in place, or write nothing: where the rule cannot decide yet, or with a warning.

        Args:
            context: The task, with its snapshots.
            rule: Gives each block its coefficients.
            keep: What the old counts against the new.
            last: Whether this is the task's last merge.

        Returns:
            What an entry of ``RecallCallback.history`` says of the merge; None without one.

        Raises:
            ValueError: If something cannot be measured, or the rule's coefficients don't fit.
        """
        reshard(context.pl_module)
        structure = context.structure
        live = find_weights(context.pl_module, context.snapshots[-1])
        context.snapshots[-1].check_shapes(live)
        left_out = self._trained.left_out(context)
        snapshots = [snapshot.without(left_out) for snapshot in context.snapshots]
        newest = snapshots[-1]
        if not newest:
            return None
        new = new_since(
            context.clock.earlier_shapes, {n: w for n, w in live.items() if n in newest}
        )
        pairs = [pair for pair in structure.lora_pairs if {pair.a, pair.b} <= newest.keys()]
        for pair in pairs:  # an update is merged as a whole
            if new.keys() & {pair.a, pair.b}:
                new |= {pair.a: None, pair.b: None}
        started = time.perf_counter()
        if not self._statistics.prepare_merge(context, rule, last):
            return None
        inputs = [
            MergeInputs(structure, live, snapshot, keep, **measured)
            for snapshot, measured in zip(
                snapshots, self._statistics.give(context, rule), strict=True
            )
        ]
        probed = time.perf_counter()
        given = rule.joint_coefficients(inputs)
        if len(given) != len(snapshots):
            raise ValueError(
                f"the rule gave coefficients of {len(given)} models for {len(snapshots)} "
                "snapshot(s): give each one's; the live model has the rest"
            )
        weights = [weights_of_names(c, structure.blocks, newest, pairs) for c in given]
        weights = with_kept_odds(weights, keep)
        weights = [scaled_by(own, rule.strength, structure.blocks, pairs) for own in weights]
        if self._buffers != "merge":
            kept = running_statistics(context.pl_module)
            weights = [{n: w for n, w in own.items() if n not in kept} for own in weights]
        weights = [{n: w for n, w in own.items() if new.get(n, ()) is not None} for own in weights]
        pairs = [pair for pair in pairs if pair.a not in new]
        if self._drift is None or self._drift.snapshot is not newest:
            self._drift = Drift(newest)
        drift = self._drift.by_block(live, structure.blocks)
        # the drift has read every weight: where it is finite, they all are
        finite = all(map(math.isfinite, drift.values()))
        try:
            with _new_parts_kept(live, new):
                discarded = merge_snapshots_(
                    live, snapshots, weights, pairs, not finite, check_elements=False
                )
        except ValueError as error:
            step = context.trainer.global_step
            rank_zero_warn(f"merge refused at step {step}, weights kept: {error}")
            return None
        visits = {visit: context.clock.visits[visit] for visit in self._kept.visits}
        self._trained.merged()
        if self._buffers == "recalibrate":
            recalibrate(context, self._run, self._recent.batches)
        return {
            **block_values(visits, inputs, weights, pairs, discarded),
            "drift": drift,
            "probe_seconds": probed - started,
            "merge_seconds": time.perf_counter() - probed,
        }


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
