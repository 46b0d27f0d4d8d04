"""One merge: measure, decide and check everything, then write."""

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.measuring.blocks import Block
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.blockwise import (
    Drift,
    merge_snapshots_,
    scaled_by,
    weights_of_names,
)
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules import MergeRule
from recall_lightning.recall.records import block_values
from recall_lightning.recall.rule_statistics import RuleStatistics
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.weights.naming import named_weights, running_statistics
from recall_lightning.weights.sharding import reshard

Buffers = Literal["keep", "merge", "recalibrate"]


class SnapshotMerge:
    """Merges the kept snapshots into the live model, with the weights that a rule gives them.

    Args:
        kept: The snapshots.
        statistics: What rules decide from.
        buffers: What happens to running statistics of normalisation layers.
    """

    def __init__(self, kept: KeptSnapshots, statistics: RuleStatistics, buffers: Buffers) -> None:
        self._kept = kept
        self._statistics = statistics
        self._buffers = buffers
        self._drift: Drift | None = None

    def apply(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        rule: MergeRule,
        strength: Setting,
        blocks: Sequence[Block],
        lora_pairs: Sequence[LoraPair],
    ) -> dict[str, Any] | None:
        """Merge in place, or refuse with a warning and write nothing.

        Args:
            trainer: The Trainer.
            pl_module: The live model.
            rule: Gives each block its coefficients.
            strength: What multiplies them.
            blocks: Shallow to deep.
            lora_pairs: Factors that are merged as one update.

        Returns:
            What an entry of ``RecallCallback.history`` says of the merge; None if it was refused.

        Raises:
            ValueError: If something cannot be measured, or the rule's coefficients don't fit.
        """
        reshard(pl_module)
        live = named_weights(pl_module)
        snapshots = self._kept.snapshots
        newest = snapshots[-1]
        pairs = [pair for pair in lora_pairs if {pair.a, pair.b} <= newest.keys()]
        started = time.perf_counter()
        for snapshot in snapshots:
            snapshot.check_matches(live)
        inputs = self._statistics.inputs(rule, trainer, pl_module, live, snapshots)
        probed = time.perf_counter()
        given = rule.joint_coefficients(inputs)
        if len(given) != len(snapshots):
            raise ValueError(
                f"the rule gave coefficients of {len(given)} models for {len(snapshots)} "
                "snapshot(s): give each one's; the live model has the rest"
            )
        weights = [weights_of_names(c, blocks, newest, pairs) for c in given]
        weights = [scaled_by(own, strength, blocks, pairs) for own in weights]
        if self._buffers != "merge":
            left = running_statistics(pl_module)
            weights = [{n: w for n, w in own.items() if n not in left} for own in weights]
        if self._drift is None or self._drift.snapshot is not newest:
            self._drift = Drift(newest)
        drift = self._drift.by_block(live, blocks)
        # the drift has read every weight: where it is finite, they all are
        finite = all(map(math.isfinite, drift.values()))
        try:
            discarded = merge_snapshots_(live, snapshots, weights, pairs, not finite)
        except ValueError as error:
            rank_zero_warn(f"merge refused at step {trainer.global_step}, weights kept: {error}")
            return None
        if self._buffers == "recalibrate":
            self._statistics.recalibrate(trainer, pl_module)
        return {
            **block_values(self._kept.tasks, inputs, weights, pairs, discarded),
            "drift": drift,
            "probe_seconds": probed - started,
            "merge_seconds": time.perf_counter() - probed,
        }
