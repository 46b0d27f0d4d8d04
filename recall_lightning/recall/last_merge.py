"""A task's last merge made again with another balance of old and new, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, device, nn

from recall_lightning.callbacks._trainer.stored_state import check_tensors
from recall_lightning.merging.blockwise import mean_by_block
from recall_lightning.merging.quadratic_forgetting import quadratic_forgetting
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.rules.stored import rule_as_plain
from recall_lightning.recall.fitted_heads import write_head_again
from recall_lightning.recall.front import FrontPoint, keep_of, share_in_reach
from recall_lightning.recall.prepared_merge import PreparedMerge, PreparedState
from recall_lightning.recall.records import ESTIMATES, OF_BOTH, of_both
from recall_lightning.recall.state import LastMergeState
from recall_lightning.weights.naming import find_weights
from recall_lightning.weights.sharding import is_sharded, write_into
from recall_lightning.weights.snapshot import Snapshot


class LastMerge:
    """A task's last merge, which can be made again until the next task starts.

    Args:
        rule: Of the task's end; None where nothing is merged there.

    Attributes:
        state: What it was made from, as a checkpoint holds it; None where that is not known.
    """

    def __init__(self, rule: MergeRule | None) -> None:
        self.state: LastMergeState | None = None
        self._rule = rule

    def keep(self, made_from: PreparedState | None) -> None:
        """Keep what it was made from, if that is to be known."""
        if made_from is None or self._rule is None:
            self.state = None
        else:
            self.state = {"rule": rule_as_plain(self._rule), "made_from": made_from}

    def again_(
        self,
        module: nn.Module,
        snapshots: Sequence[Snapshot],
        record: Mapping[str, Any],
        plasticity: float,
        ended: bool,
    ) -> dict[str, Any]:
        """Make it again, into the weights of a module.

        Args:
            module: The model.
            snapshots: The snapshots, oldest first.
            record: The merge's entry in ``RecallCallback.history``.
            plasticity: The share of the task's gain that is left.
            ended: Whether its task is the current one.

        Returns:
            The entry for the new merge.

        Raises:
            ValueError: If what it was made from is not known, the model is another or sharded, or
                snapshots are not at hand. Nothing has been written then.
        """
        if self.state is None or self._rule is None:
            raise ValueError(why_not_again(record, ended))
        made_from = self.state["made_from"]
        weights, on = _weights(module, made_from, snapshots)
        merged, entry = merged_again(made_from, self._rule, snapshots, record, plasticity, on)
        write_into({name: weights[name] for name in merged}, merged)
        why = told_out_of_reach(record, plasticity)
        if why is not None:
            rank_zero_warn(f"RecallCallback.retune: {why}")
        return entry

    def within_(
        self,
        module: nn.Module,
        snapshots: Sequence[Snapshot],
        record: Mapping[str, Any],
        limits: Mapping[str, float],
    ) -> dict[str, Any] | None:
        """Make it again so that the estimates of what is forgotten keep their limits.

        Of the merges that were tried, kept more of the old than the one that was made, and keep the
        limits, it is the one that leaves most of the task's gain.

        Args:
            module: The model, whose weights are written if there is one.
            snapshots: The snapshots, oldest first.
            record: The merge's entry in ``RecallCallback.history``.
            limits: The largest estimates that are allowed, by name, in nats a prediction.

        Returns:
            The entry for the new merge; None where none of them keeps the limits, or it cannot be
            made again, of which a warning tells.
        """
        if self.state is None or self._rule is None:
            return None
        try:
            return self._within(module, self.state["made_from"], snapshots, record, limits)
        except ValueError as error:
            rank_zero_warn(f"RecallCallback cannot make the last merge again: {error}")
            return None

    def _within(
        self,
        module: nn.Module,
        made_from: PreparedState,
        snapshots: Sequence[Snapshot],
        record: Mapping[str, Any],
        limits: Mapping[str, float],
    ) -> dict[str, Any] | None:
        assert self._rule is not None
        weights, on = _weights(module, made_from, snapshots)
        front = front_in(record)
        most = limits.get("estimated_forgetting", math.inf)
        allowed = [
            point
            for point in front
            if 0 < point.plasticity < min(1.0, record["plasticity"])
            and (most == math.inf or (point.divergence is not None and point.divergence <= most))
            and math.isclose(keep_of(front, point.plasticity), point.keep)  # not one before it
        ]
        for point in sorted(allowed, key=lambda point: point.plasticity, reverse=True):
            given = (made_from, self._rule, snapshots, record, point.plasticity, on)
            merged, entry = merged_again(*given)
            quadratic = entry.get("quadratic_forgetting", {}).get("merged", math.inf)
            if quadratic <= limits.get("quadratic_forgetting", math.inf):
                write_into({name: weights[name] for name in merged}, merged)
                live = record.get("divergence", {}).get("live")
                return entry | of_both("divergence", live, point.divergence)
        return None


def why_not_again(record: Mapping[str, Any], ended: bool = True) -> str:
    """Say why a merge of which nothing is kept cannot be made again.

    Args:
        record: Its entry in ``RecallCallback.history``; empty where there is none.
        ended: Whether no other task has started since.

    Example:
        >>> why_not_again({})
        "nothing has been merged yet: a merge at a task's end can be made again"
    """
    if not record:
        return "nothing has been merged yet: a merge at a task's end can be made again"
    if not ended:
        return (
            "the next task has started, and what the last merge was made from is kept until then: "
            "make it again before that"
        )
    if "rolled_back" in record:
        return "the last merge's task was rolled back: there is nothing left of it to make again"
    if "keep" not in record:
        return (
            "the last merge was made with its rule's own balance: others are tried with a "
            "plasticity, such as 0.95, in a merge at a task's end"
        )
    if not record.get("front"):
        return (
            "beside the last merge no others were tried, as its task had gained nothing or has no "
            "loss that can be measured: it stays as it is"
        )
    return (
        "what the last merge was made from is not kept: keep_live=True does so, the default where "
        "an adapter is trained, but not with buffers='recalibrate'"
    )


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
        The merged weights by canonical name, and the entry for them. Where it is the merge that
        the record is of, it is that; else the share is the one that was asked for, or as much as is
        in reach, and what the merge before had measured on data is left out.

    Raises:
        ValueError: If the state is damaged, or the merge would not be finite.
    """
    state = move_data_to_device(state, on)
    there = [{name: copy.to(on) for name, copy in snapshot.items()} for snapshot in snapshots]
    prepared = PreparedMerge.from_state(state, rule, there).copied()
    front = front_in(record)
    keep, plasticity = keep_of(front, plasticity), share_in_reach(front, plasticity)
    weights = prepared.weights(keep)
    prepared.write(weights)
    if "heads" in state:
        write_head_again(prepared.live, state["heads"], keep)
    if keep == record["keep"]:
        return prepared.live, dict(record)
    measured = {"loss", *OF_BOTH, "discarded_energy", "condition"}
    coefficient = mean_by_block(weights[-1], prepared.inputs[-1].blocks, prepared.live)
    kept = {name: value for name, value in record.items() if name not in measured}
    again = {"keep": keep, "plasticity": plasticity, "coefficient": coefficient, "retuned": True}
    if "quadratic_forgetting" in record:
        live = record["quadratic_forgetting"]["live"]
        forgotten = quadratic_forgetting(prepared.inputs[-1], refitted=record.get("refitted"))
        again |= of_both("quadratic_forgetting", live, forgotten)
    return prepared.live, kept | again


def told_out_of_reach(record: Mapping[str, Any], plasticity: float) -> str | None:
    """Say of a share that no merge leaves it, and what is sought instead; None where one does.

    Args:
        record: The merge's entry in ``RecallCallback.history``.
        plasticity: The share.

    Example:
        >>> record = {"front": [{"keep": keep, "plasticity": 0.75, "loss": 0.1} for keep in (1, 2)]}
        >>> told_out_of_reach(record, 0.99)
        'no merge leaves 99 % of what the task has gained, 72.5 % is sought instead'
    """
    in_reach = share_in_reach(front_in(record), plasticity)
    if in_reach == plasticity:
        return None
    return (
        f"no merge leaves {100 * plasticity:.4g} % of what the task has gained, "
        f"{100 * in_reach:.3g} % is sought instead"
    )


def told_within(record: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """Say which merge has taken the place of which, by their entries in ``history``."""
    told = [
        f"{name} of {again[measured]['merged']:.4g}"
        for name, measured in ESTIMATES.items()
        if measured in again
    ]
    return (
        f"of the merges that were tried, that which leaves {100 * again['plasticity']:.0f} % of "
        f"the task's gain takes the place of the one that left {100 * record['plasticity']:.0f} %, "
        f"with {' and '.join(told)}"
    )


def _weights(
    module: nn.Module, state: PreparedState, snapshots: Sequence[Snapshot]
) -> tuple[dict[str, Tensor], device]:
    """Return the weights of a module that a merge writes, and where they are.

    Raises:
        ValueError: If it is another model or sharded, or snapshots are not at hand.
    """
    weights = find_weights(module, state["live"])
    check_tensors(state["live"], weights, "the last merge")
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
