"""The list of all statistics: a new one goes in here."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from recall_lightning.measuring.predictions import Predictions
from recall_lightning.merging.rules import MergeRule
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
)
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.recall.statistics.importance import ParameterImportance
from recall_lightning.recall.statistics.moments import MapMoments
from recall_lightning.recall.statistics.needed import NeededStatistics
from recall_lightning.recall.statistics.prior import Prior
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.statistics.samples import TypicalSamples
from recall_lightning.recall.statistics.step_sizes import StepSizes


def statistics_for(
    rules: Sequence[MergeRule],
    samples: SampleSettings,
    importance: ImportanceSettings,
    moments: MomentSettings,
    prior: PriorSettings | Iterable[Any] | None,
    run: ModelRun,
    recent: RecentBatches,
    steps: StepSizes,
    reads_batches: bool,
    seed: int,
    predictions: str | Predictions | Callable[[Tensor], Distribution],
    refits_head: bool = False,
    asks_for_head: bool = False,
) -> NeededStatistics:
    """Return the statistics that rules need.

    Args:
        rules: Those of the schedule.
        samples: Of the typical samples.
        importance: Of the importance of parameters.
        moments: Of the moments of linear maps.
        prior: What the model knew before its first task, if it is known.
        run: How the model is run on a batch.
        recent: The last batches.
        steps: Those since the last merge.
        reads_batches: Whether a merge itself runs the model on those.
        seed: Of whatever is drawn.
        predictions: The kind of the model's.
        refits_head: Whether a merge fits the last layer to what it was given.
        asks_for_head: Whether the user says so, and is to be warned where it cannot be.

    Raises:
        ValueError: If a rule needs what there is not, or there is no such kind of prediction.
    """
    curvature = any("curvature" in rule.needs for rule in rules)
    known = Prior(prior, moments.batches, run, seed)
    of_maps = MapMoments(recent, moments, known, run, seed, curvature, predictions)
    available: list[Statistic] = [
        recent,
        TypicalSamples(samples, run, seed),
        ParameterImportance(importance, beside_curvature=curvature),
        of_maps,
        HeadInputs(recent, moments, run, of_maps, seed, asks_for_head),
        steps,
    ]
    measures_maps = any(rule.needs & MapMoments.meets for rule in rules)
    others = [steps.name]
    others += [recent.name] if reads_batches or measures_maps else []
    others += [HeadInputs.name] if refits_head else []
    return NeededStatistics(available, rules, others)
