"""A task's last merge made again with another balance of old and new, without training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, device, nn

from recall_lightning.callbacks._trainer.stored_state import check_tensors, count_tensors
from recall_lightning.checks import FormError, check_form
from recall_lightning.merging.blockwise import mean_by_block
from recall_lightning.merging.estimated_forgetting import estimated_forgetting
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.rules.stored import rule_from_plain
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.recall.front import FrontPoint, keep_of
from recall_lightning.recall.prepared_merge import PreparedMerge, PreparedState
from recall_lightning.recall.records import of_both
from recall_lightning.recall.state import LastMergeState
from recall_lightning.weights.lightning_checkpoint import with_weights
from recall_lightning.weights.naming import find_weights
from recall_lightning.weights.sharding import is_sharded, write_into
from recall_lightning.weights.snapshot import Snapshot
from recall_lightning.weights.snapshot_file import FileReference, FileSnapshot

NOTHING_KEPT = (
    "what the last merge was made from is not known: it is kept from a task's end until the next "
    "task, with a plasticity, of a task that has gained something, and where keep_live=True says "
    "so or an adapter is trained"
)
"""Why a merge cannot be made again."""


class _Held(TypedDict):
    """What a checkpoint must hold of RecallCallback to be merged again."""

    history: list[dict[str, Any]]
    snapshots: dict[str, Any]
    last_merge: LastMergeState


def front_in(record: Mapping[str, Any]) -> list[FrontPoint]:
    """Return the merges that were tried, of an entry of ``RecallCallback.history``."""
    return [FrontPoint(**point) for point in record["front"]]


def merged_again(
    state: PreparedState,
    rule: MergeRule,
    snapshots: Sequence[Mapping[str, Tensor]],
    record: Mapping[str, Any],
    plasticity: float,
    on: device | str = "cpu",
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Make a task's last merge again.

    Args:
        state: What it was made from, which is left as it is.
        rule: Of the task's end.
        snapshots: The snapshots, oldest first.
        record: The merge's entry in ``RecallCallback.history``.
        plasticity: The share of the task's gain that is left, in (0, 1).
        on: Where it is computed.

    Returns:
        The merged weights by canonical name, and the entry for them: the share is the one that was
        asked for, and what the merge before had measured is left out.

    Raises:
        ValueError: If the state is damaged, or the merge would not be finite.
    """
    state = move_data_to_device(state, on)
    there = [{name: copy.to(on) for name, copy in snapshot.items()} for snapshot in snapshots]
    prepared = PreparedMerge.from_state(state, rule, there).copied()
    keep = keep_of(front_in(record), plasticity)
    weights = prepared.weights(keep)
    prepared.write(weights)
    measured = {"loss", "divergence", "written_divergence", "discarded_energy", "condition"}
    coefficient = mean_by_block(weights[-1], prepared.inputs[-1].blocks, prepared.live)
    kept = {name: value for name, value in record.items() if name not in measured}
    again = {"keep": keep, "plasticity": plasticity, "coefficient": coefficient, "retuned": True}
    return prepared.live, kept | again


def merge_again_(
    module: nn.Module,
    state: PreparedState,
    rule: MergeRule,
    snapshots: Sequence[Snapshot],
    record: Mapping[str, Any],
    plasticity: float,
) -> dict[str, Any]:
    """Make a task's last merge again, into the weights of a module.

    Args:
        module: The model.
        state: What the merge was made from.
        rule: Of the task's end.
        snapshots: The snapshots, oldest first.
        record: The merge's entry in ``RecallCallback.history``.
        plasticity: The share of the task's gain that is left.

    Returns:
        The entry for the new merge.

    Raises:
        ValueError: If the model is another or sharded, or snapshots are not at hand. Nothing has
            been written then.
    """
    weights, on = _weights(module, state, snapshots)
    merged, entry = merged_again(state, rule, snapshots, record, plasticity, on)
    write_into({name: weights[name] for name in merged}, merged)
    return entry


def merge_within_(
    module: nn.Module,
    state: PreparedState,
    rule: MergeRule,
    snapshots: Sequence[Snapshot],
    record: Mapping[str, Any],
    most: float,
) -> dict[str, Any] | None:
    """Make a task's last merge again so that the estimate of what is forgotten keeps a limit.

    Of the merges that were tried and kept more of the old than the one that was made, it is the
    first that does, from the one that leaves most of the task's gain on.

    Args:
        module: The model, whose weights are written if there is one.
        state: What the merge was made from.
        rule: Of the task's end.
        snapshots: The snapshots, oldest first.
        record: The merge's entry in ``RecallCallback.history``.
        most: The largest estimate that is allowed, in nats a prediction.

    Returns:
        The entry for the new merge; None where none of them keeps the limit, or the merge cannot be
        made again, of which a warning tells.
    """
    try:
        return _merge_within(module, state, rule, snapshots, record, most)
    except ValueError as error:
        rank_zero_warn(f"RecallCallback cannot make the last merge again: {error}")
        return None


def told_within(record: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """Say which merge has taken the place of which, by their entries in ``history``."""
    return (
        f"of the merges that were tried, that which leaves {100 * again['plasticity']:.0f} % of "
        f"the task's gain takes the place of the one that left {100 * record['plasticity']:.0f} %, "
        f"with {again['estimated_forgetting']['merged']:.4g}"
    )


def _merge_within(
    module: nn.Module,
    state: PreparedState,
    rule: MergeRule,
    snapshots: Sequence[Snapshot],
    record: Mapping[str, Any],
    most: float,
) -> dict[str, Any] | None:
    weights, on = _weights(module, state, snapshots)
    shares = sorted((point.plasticity for point in front_in(record)), reverse=True)
    moved = move_data_to_device(state, on)
    inputs = PreparedMerge.from_state(moved, rule, snapshots).inputs[-1]
    for share in (each for each in shares if 0 < each < min(1.0, record["plasticity"])):
        merged, entry = merged_again(state, rule, snapshots, record, share, on)
        estimate = estimated_forgetting(inputs, merged)
        if estimate is not None and estimate <= most:
            write_into({name: weights[name] for name in merged}, merged)
            live = record["estimated_forgetting"]["live"]
            return entry | of_both("estimated_forgetting", live, estimate)
    return None


def _weights(
    module: nn.Module, state: PreparedState, snapshots: Sequence[Snapshot]
) -> tuple[dict[str, Tensor], device]:
    """Return the weights of a module that a merge writes, and where they are.

    Raises:
        ValueError: If it is another model or sharded, or snapshots are not at hand.
    """
    weights = find_weights(module, state["live"])
    check_tensors(state["live"], weights, "the model that was merged:")
    if any(map(is_sharded, weights.values())):
        raise ValueError(
            "a sharded model is merged again on disk: use recall-lightning retune on a checkpoint"
        )
    if not all(state["live"].keys() <= each.keys() for each in snapshots):
        raise ValueError(
            "the snapshots lie in files, which only a fit finds again: use recall-lightning retune "
            "on the checkpoint"
        )
    return weights, next(iter(weights.values())).device


def state_in(checkpoint: Mapping[str, Any]) -> str:
    """Return the key of RecallCallback's state among a checkpoint's callbacks.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    with _damage_is_said():
        states = checkpoint.get("callbacks", {})
        keys = [k for k, own in states.items() if {"history", "snapshots"} <= set(own)]
        if not keys:
            raise ValueError(
                "the checkpoint holds no state of RecallCallback: name one of a run with it"
            )
        state = states[keys[0]]
        wanted, found = state.get("tensors"), count_tensors(state)
        if wanted is not None and found != wanted:
            raise FormError(f"it holds {found} tensors, and held {wanted}")
    return str(keys[0])


def last_front(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of the last merge in ``history``, which has a front.

    Args:
        state: That of RecallCallback.

    Raises:
        ValueError: If there is none.
    """
    record = state["history"][-1] if state["history"] else {}
    if not record.get("front"):
        raise ValueError(
            "the checkpoint's last merge has no front: merges are tried at a task's end with a "
            "plasticity (the default of a pre-trained model, else plasticity=0.95), where the task "
            "has gained something, and keep_live=True keeps what they were made from"
        )
    return dict(record)


@contextmanager
def _damage_is_said() -> Iterator[None]:
    """Raise whatever comes of a state of another form as a ValueError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"the checkpoint's state is damaged, or of another version ({type(error).__name__}: "
            f"{error}): name another checkpoint"
        ) from error
    except FormError as error:
        raise ValueError(
            f"the checkpoint's state is damaged, {error}: name another checkpoint"
        ) from error


def retuned(checkpoint: Mapping[str, Any], plasticity: float, folder: Path) -> dict[str, Any]:
    """Return a checkpoint whose last merge leaves another share of the task's gain.

    Statistics of the task that has ended are as they were measured; so is what the optimizer holds,
    and ForgettingMonitor's last row, which then says so.

    Args:
        checkpoint: One from a task's end; left as it is.
        plasticity: The share, in (0, 1).
        folder: Where the checkpoint lies, beside whose files snapshots may lie.

    Raises:
        ValueError: If it does not hold what the merge was made from, or not whole.
    """
    key = state_in(checkpoint)
    state = checkpoint["callbacks"][key]
    if state.get("last_merge") is None:
        raise ValueError(NOTHING_KEPT)
    with _damage_is_said():
        check_form(state, _Held)
        return _retuned(checkpoint, key, plasticity, folder)


def _retuned(
    checkpoint: Mapping[str, Any], key: str, plasticity: float, folder: Path
) -> dict[str, Any]:
    state = checkpoint["callbacks"][key]
    stored = state["last_merge"]["rule"]
    if stored is None:
        raise ValueError(
            "the rule of the last merge is of a class of your own without a name: load the "
            "checkpoint into your Trainer and use RecallCallback.retune"
        )
    snapshots = _snapshots(state["snapshots"], folder)
    made_from, records = state["last_merge"]["made_from"], state["history"]
    merged, record = merged_again(
        made_from, rule_from_plain(stored), snapshots, records[-1], plasticity
    )
    states = {
        name: {**own, "record": _outdated(own["record"], record["step"])}
        if "record" in own
        else own
        for name, own in checkpoint["callbacks"].items()
    }
    states[key] = {**state, "history": [*records[:-1], record]}
    return {
        **checkpoint,
        "state_dict": with_weights(checkpoint["state_dict"], merged),
        "callbacks": states,
    }


def _outdated(state: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Return a task record's state that says that its last row is of another merge."""
    record = TaskRecord.of_state(copy.deepcopy(state))
    record.retune(step)
    return record.state_dict()


def _snapshots(state: Mapping[str, Any], folder: Path) -> list[Mapping[str, Tensor]]:
    files = state.get("files", [None] * len(state["tensors"]))
    found: list[Mapping[str, Tensor]] = []
    for tensors, file in zip(state["tensors"], files, strict=True):
        found.append(tensors if file is None else _from_file(FileReference(**file), folder))
    return found


def _from_file(reference: FileReference, folder: Path) -> FileSnapshot:
    places = [folder / "snapshots", folder.parent / "snapshots", Path(reference.folder)]
    for place in places:
        try:
            return FileSnapshot.open(reference, place)
        except ValueError as error:
            failure = error
    raise ValueError(
        f"the snapshot's file {reference.name} must be whole in one of "
        f"{', '.join(map(str, places))}: {failure}"
    )
