"""What a checkpoint holds of RecallCallback, and with which settings its task can go on."""

from collections.abc import Collection, Sequence
from typing import Any, NotRequired, TypedDict

from recall_lightning.callbacks._trainer.clock import CallbackState
from recall_lightning.recall.drift.watch import DriftState
from recall_lightning.recall.prepared_merge import PreparedState
from recall_lightning.recall.snapshots import SnapshotsState
from recall_lightning.recall.training_estimates import EstimateState

_ADVICE = "resume with what the checkpoint was written with, or from one at a task's end"


class MergeRecord(TypedDict):
    """An entry of ``RecallCallback.history``: what a merge measured, decided and took.

    Every one has ``task`` and ``visit`` (counted from 0; see
    :class:`~recall_lightning.callbacks.task_aware.TaskAwareCallback`; of an older checkpoint no
    visit), ``step`` (optimizer steps so far, over all fits), ``similarity``, ``coefficient`` and
    ``drift`` (block name to float; a coefficient is the mean over the block's weights, drift is
    ‖θ − θ_snapshot‖ / ‖θ_snapshot‖ before the merge), ``probe_seconds`` and ``merge_seconds``. By a
    rule that is proximal one within a task has ``keep``, the size of the steps since the last.

    With the kfac rules there is also ``quadratic_forgetting``, of the live and the merged weights,
    in nats a prediction (see
    :func:`~recall_lightning.merging.quadratic_forgetting.quadratic_forgetting`). At a task's end
    with ``plasticity`` there are ``keep`` (how many times the old counted), ``plasticity`` (the
    share that is left), ``loss`` (under the snapshot's, the live and the merged weights),
    ``divergence`` (of the latter two from the snapshot, in nats a prediction) and ``front`` (a list
    of the merges that were tried, see :class:`~recall_lightning.recall.front.FrontPoint`), and
    ``refitted``, a classifier's last layer by name, where that was fitted anew. Where a
    language model wrote down what it knew before its first task, there is at a task's end
    ``written_divergence``, as ``divergence``, on some of that, in nats a token. With the subspace
    rule there is ``condition`` (block name to the worst condition number of the systems it solved),
    with LoRA ``discarded_energy`` (block name to the fraction of ‖ΔW‖² that merged factors lost on
    their way back to their rank), and with several snapshots ``earlier`` (a list of dicts with the
    ``task``, ``visit``, ``similarity`` and ``coefficient`` of each but the newest, which the other
    entries are about).
    """

    task: int
    visit: NotRequired[int]
    step: int
    coefficient: dict[str, float]
    similarity: NotRequired[dict[str, float]]
    drift: NotRequired[dict[str, float]]
    keep: NotRequired[float]


class LastMergeState(TypedDict):
    """What a checkpoint from a task's end holds of its merge, to make it again."""

    rule: dict[str, Any] | None
    made_from: PreparedState


class RecallState(CallbackState):
    """What a checkpoint holds of it; an older one holds less."""

    first_visit: NotRequired[int]
    history: list[MergeRecord]
    blocks: NotRequired[list[str]]
    settings: NotRequired[dict[str, Any]]
    snapshots: SnapshotsState
    statistics: dict[str, dict[str, Any]]
    last_merge: NotRequired[LastMergeState | None]
    drift: NotRequired[DriftState | None]
    estimate: NotRequired[EstimateState | None]


def check_same_blocks(now: Sequence[str], then: Sequence[str]) -> None:
    """Check that a task goes on with the blocks that it began with; none are known of an older one.

    Raises:
        ValueError: If it does not.

    Example:
        >>> check_same_blocks(["layers.0"], ["layers.0", "layers.1"])
        Traceback (most recent call last):
        ValueError: the blocks are layers.0 (1) and were layers.0, layers.1 (2) when the task ...
    """
    if then and list(now) != list(then):
        raise ValueError(
            f"the blocks are {_few(now)} and were {_few(then)} when the task began: {_ADVICE}"
        )


def check_same_first_task(merge_first_task: bool, visits: Collection[int]) -> None:
    """Check that the first task goes on with or without a snapshot, as it began.

    Args:
        merge_first_task: Whether it is to have one.
        visits: Those whose snapshots there are.

    Raises:
        ValueError: If it does not.
    """
    took = 0 in visits
    if took != merge_first_task:
        raise ValueError(
            f"merge_first_task={merge_first_task}, and the first task began "
            f"{'with' if took else 'without'} a snapshot: {_ADVICE}"
        )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{'…' if len(names) > 3 else ''} ({len(names)})"
