"""What RecallCallback is put together from, made of its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recall_lightning.merging.rules import MergeRule
from recall_lightning.recall.arguments import (
    check_arguments,
    check_decides_about,
    check_keep_live,
    check_refit_head,
    chosen,
    needed_settings,
    rules_of,
)
from recall_lightning.recall.drift.watch import DriftWatch
from recall_lightning.recall.last_layer import LastLayer
from recall_lightning.recall.merge import SnapshotMerge
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.plasticity import MeasuredPlasticity
from recall_lightning.recall.settings import (
    Buffers,
    DriftSettings,
    ImportanceSettings,
    MomentSettings,
    SampleSettings,
    SnapshotSettings,
)
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.recall.statistics.available import statistics_for
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.statistics.step_sizes import StepSizes
from recall_lightning.recall.trained_weights import TrainedWeights
from recall_lightning.recall.training_estimates import TrainingEstimates


@dataclass(frozen=True)
class Parts:
    """The parts, and what arguments of ``"auto"`` have come to.

    Attributes:
        rule: Decides in the loop.
        end_rule: Decides at a task's end; None where nothing is merged then.
        every: The interval between merges.
        plasticity: What the last one of a task leaves of its gain.
        kept: The snapshots.
        statistics: What rules decide from.
        trained: Tells which weights are merged.
        merge: Makes a merge.
        last_layer: Is fitted with a task's last merge.
        estimates: Tells through a task what is forgotten.
        drift: Notices changes, where nobody tells the boundaries.
        run: How the model is run.
        recent: The last batches.
        buffers: What merges do to running means and variances.
    """

    rule: MergeRule
    end_rule: MergeRule | None
    every: int | float
    plasticity: float | None
    kept: KeptSnapshots
    statistics: NeededStatistics
    trained: TrainedWeights
    merge: SnapshotMerge
    last_layer: LastLayer
    estimates: TrainingEstimates
    drift: DriftWatch | None
    run: ModelRun
    recent: RecentBatches
    buffers: Buffers


def parts_of(given: Mapping[str, Any]) -> Parts:
    """Make the parts.

    Args:
        given: The arguments of RecallCallback by name.

    Raises:
        ValueError: For an argument out of its range, or without an effect.
    """
    check_arguments(given)
    boundaries, buffers, predictions = (given[n] for n in ("boundaries", "buffers", "predictions"))
    rule, end_rule = rules_of(given["rule"], given["end_rule"])
    every, plasticity = chosen(
        given["every"],
        given["plasticity"],
        rule,
        end_rule,
        pretrained=given["merge_first_task"],
        untold=boundaries != "known",
    )
    rules = [rule] if end_rule is None else [rule, end_rule]
    needed_settings(given, rules, buffers, plasticity is not None)
    snapshots = given["snapshots"]
    if not isinstance(snapshots, SnapshotSettings):
        snapshots = SnapshotSettings(1 if snapshots is None else snapshots)
    kept, trained, run = KeptSnapshots(snapshots), TrainedWeights(), ModelRun(given["view"])
    for own in rules:
        check_decides_about(kept.most, own)
    moments = given["moments"] or MomentSettings()
    generates = moments.source == "generated"
    merge_reads = buffers == "recalibrate" or plasticity is not None
    reads = merge_reads or any("new_moments" in each.needs for each in rules)
    recent = RecentBatches(moments.batches, not generates, reads or not generates)
    refits_head = check_refit_head(given["refit_head"], rules)
    statistics = statistics_for(
        rules,
        given["samples"] or SampleSettings(),
        given["importance"] or ImportanceSettings(),
        moments,
        given["prior"],
        run,
        recent,
        steps := StepSizes(),
        reads_batches=merge_reads,
        seed=given["seed"],
        predictions=predictions,
        refits_head=refits_head,
        asks_for_head=given["refit_head"] is True,
    )
    measured = MeasuredPlasticity(plasticity, run, predictions)
    keep_live = check_keep_live(given["keep_live"], plasticity, buffers)
    heads = next((each for each in statistics.active if isinstance(each, HeadInputs)), None)
    is_auto, starts_random = given["refit_head"] == "auto", not given["merge_first_task"]
    only_costly = is_auto and plasticity is None
    only_new = is_auto and (starts_random or plasticity is None)
    last_layer = LastLayer(heads, run, recent, given["plasticity"] == "auto", only_new, only_costly)
    merge = SnapshotMerge(
        kept, statistics, trained, buffers, run, recent, measured, last_layer, steps, keep_live
    )
    estimates = TrainingEstimates(statistics, last_layer, run, recent)
    drift = None
    if boundaries != "known":
        drift = DriftWatch(DriftSettings() if boundaries == "drift" else boundaries, recent)
    return Parts(
        rule,
        end_rule,
        every,
        plasticity,
        kept,
        statistics,
        trained,
        merge,
        last_layer,
        estimates,
        drift,
        run,
        recent,
        buffers,
    )
