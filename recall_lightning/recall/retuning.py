"""A checkpoint whose last merge is made again with another balance of old and new."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from recall_lightning.callbacks._trainer.stored_state import count_tensors
from recall_lightning.checks import FormError, check_form
from recall_lightning.merging.rules.stored import rule_from_plain
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.recall.last_merge import front_in, merged_again, why_not_again
from recall_lightning.recall.state import LastMergeState
from recall_lightning.weights.lightning_checkpoint import with_weights
from recall_lightning.weights.snapshot_file import FileReference, FileSnapshot


class _Held(TypedDict):
    """What a checkpoint must hold of RecallCallback to be merged again."""

    history: list[dict[str, Any]]
    snapshots: dict[str, Any]
    last_merge: LastMergeState


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
        ValueError: If there is none, or it is damaged.
    """
    with _damage_is_said():
        record = _last_record(state)
        if record.get("front"):
            front_in(record), record["step"], record["keep"]  # all of them are there
    if not record.get("front"):
        raise ValueError(why_not_again(record))
    return dict(record)


def _last_record(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the last merge's entry in ``history``; empty where there is none."""
    return state["history"][-1] if state["history"] else {}


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

    Statistics of the task that has ended are as they were measured. So are the next snapshot, where
    that is not the model, what the optimizer holds, and ForgettingMonitor's last row, which then
    says so.

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
        with _damage_is_said():
            record = _last_record(state)
        raise ValueError(why_not_again(record, state.get("task_ended", True)))
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
    is_another = record != records[-1]
    states = {
        name: {**own, "record": _outdated(own["record"], record["step"])}
        if "record" in own and is_another
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
