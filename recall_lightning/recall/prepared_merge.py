"""A merge with all that it is made from, so that it can be made again with another balance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from recall_lightning.checks import FormError
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import Moments, moments_from
from recall_lightning.merging.blockwise import merge_snapshots_, scaled_by, weights_of_names
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.odds import with_kept_odds
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.merging.rules.unasked import only_asked
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.fitted_heads import HeadsState
from recall_lightning.weights.growth import is_new

_MEASURED = ("similarity", "importance", "earlier_tasks", "curvature_mean")
_MOMENTS = ("old_moments", "old_output_moments", "new_moments", "new_output_moments")


class PreparedState(TypedDict):
    """What a checkpoint holds of a merge, beside the snapshots."""

    blocks: list[dict[str, Any]]
    maps: list[dict[str, Any]]
    lora_pairs: list[dict[str, Any]]
    live: dict[str, Tensor]
    measured: list[dict[str, Any]]
    new: dict[str, list[int] | None]
    left: list[str]
    heads: NotRequired[HeadsState]


class RefusedMergeError(ValueError):
    """A merge would not have been finite; nothing was written."""


@dataclass(frozen=True)
class PreparedMerge:
    """What a merge reads, however often it is made.

    Attributes:
        rule: Gives each block its coefficients.
        inputs: What it is given for each snapshot, oldest first.
        new: What has come or grown in this task: its name to the shape that it had, or None.
        left: Names of weights that are left as they are.
    """

    rule: MergeRule
    inputs: Sequence[MergeInputs]
    new: Mapping[str, list[int] | None]
    left: frozenset[str] = frozenset()

    @property
    def live(self) -> Mapping[str, Tensor]:
        """Name to live weight, which the merge writes."""
        return self.inputs[-1].live

    @property
    def snapshots(self) -> list[Mapping[str, Tensor]]:
        """What is merged of each snapshot."""
        return [each.snapshot for each in self.inputs]

    @property
    def pairs(self) -> list[LoraPair]:
        """The LoRA updates among the weights."""
        newest = self.snapshots[-1].keys()
        return [p for p in self.inputs[-1].lora_pairs if {p.a, p.b} <= newest]

    @property
    def merged_pairs(self) -> list[LoraPair]:
        """Those that the snapshot knows."""
        return [pair for pair in self.pairs if pair.a not in self.new]

    def copied(self) -> PreparedMerge:
        """Return the same of copies of the live weights, which training leaves as they are."""
        newest = self.snapshots[-1]
        live = {n: w.detach().clone() for n, w in self.live.items() if n in newest}
        return replace(self, inputs=[replace(each, live=live) for each in self.inputs])

    def weights(self, keep: float) -> list[dict[str, Coefficient]]:
        """Return what of each snapshot every weight takes, where the old counts ``keep`` times.

        Raises:
            ValueError: If the rule's coefficients don't fit.
        """
        blocks, newest = self.inputs[-1].blocks, self.snapshots[-1]
        inputs = [only_asked(self.rule, replace(own, keep=keep)) for own in self.inputs]
        given = self.rule.joint_coefficients(inputs)
        if len(given) != len(self.inputs):
            raise ValueError(
                f"the rule gave coefficients of {len(given)} models for {len(self.inputs)} "
                "snapshot(s): give each one's; the live model has the rest"
            )
        weights = [weights_of_names(c, blocks, newest, self.pairs) for c in given]
        weights = with_kept_odds(weights, keep)
        weights = [scaled_by(own, self.rule.strength, blocks, self.pairs) for own in weights]
        left = self.left | {name for name, shape in self.new.items() if shape is None}
        return [{n: w for n, w in own.items() if n not in left} for own in weights]

    def write(
        self, weights: Sequence[Mapping[str, Coefficient]], check_finite: bool = True
    ) -> dict[str, float]:
        """Merge in place.

        Returns:
            Module of a LoRA update to what it has lost on its way back to its rank.

        Raises:
            RefusedMergeError: If the merge would not be finite.
        """
        with _new_parts_kept(self.live, self.new):
            try:
                return merge_snapshots_(
                    self.live, self.snapshots, weights, self.merged_pairs, check_finite, False
                )
            except ValueError as error:
                raise RefusedMergeError(str(error)) from error

    def state_dict(self) -> PreparedState:
        """Return all of it but the rule and the snapshots, in plain Python and tensors."""
        structure, newest = self.inputs[-1].structure, self.snapshots[-1]
        return {
            "blocks": [asdict(block) for block in structure.blocks],
            "maps": [asdict(one) for one in structure.maps],
            "lora_pairs": [asdict(pair) for pair in structure.lora_pairs],
            "live": {name: weight for name, weight in self.live.items() if name in newest},
            "measured": [_measured(each) for each in self.inputs],
            "new": dict(self.new),
            "left": sorted(self.left),
        }

    @classmethod
    def from_state(
        cls, state: PreparedState, rule: MergeRule, snapshots: Sequence[Mapping[str, Tensor]]
    ) -> PreparedMerge:
        """Build what :meth:`state_dict` returned; the live weights are the state's own tensors.

        Args:
            state: The state.
            rule: The rule.
            snapshots: The snapshots, oldest first.

        Raises:
            ValueError: If it is not of that form, or not of these snapshots.
        """
        try:
            blocks = [Block(**each) for each in state["blocks"]]
            maps = [LinearMap(**each) for each in state["maps"]]
            pairs = [LoraPair(**each) for each in state["lora_pairs"]]
        except TypeError as error:
            raise FormError(f"last_merge is of another version: {error}") from error
        live = dict(state["live"])
        if any(name not in snapshot for snapshot in snapshots for name in live):
            raise FormError("last_merge holds weights that are in no snapshot")
        structure = Structure(blocks, maps, pairs)
        inputs = [
            MergeInputs(structure, live, {n: snapshot[n] for n in live}, **_restored(measured))
            for snapshot, measured in zip(snapshots, state["measured"], strict=True)
        ]
        return cls(rule, inputs, state["new"], frozenset(state["left"]))


def _measured(inputs: MergeInputs) -> dict[str, Any]:
    moments: dict[str, Mapping[str, Moments]] = {each: getattr(inputs, each) for each in _MOMENTS}
    plain = {each: getattr(inputs, each) for each in _MEASURED}
    return {
        **{each: dict(v) if isinstance(v, Mapping) else v for each, v in plain.items()},
        **{each: {n: m.state_dict() for n, m in own.items()} for each, own in moments.items()},
    }


def _restored(measured: Mapping[str, Any]) -> dict[str, Any]:
    moments = {each: measured[each] for each in _MOMENTS}
    return {
        **{each: measured[each] for each in _MEASURED},
        **{each: {n: moments_from(s) for n, s in own.items()} for each, own in moments.items()},
    }


@contextmanager
def _new_parts_kept(
    live: Mapping[str, Tensor], new: Mapping[str, list[int] | None]
) -> Iterator[None]:
    """Leave what is new of grown weights as it was, whatever is written inside."""
    grown = {name: shape for name, shape in new.items() if shape is not None}
    kept = {name: live[name].detach().clone() for name in grown}
    yield
    with torch.no_grad():
        for name, shape in grown.items():
            live[name].copy_(torch.where(is_new(live[name], shape), kept[name], live[name]))
