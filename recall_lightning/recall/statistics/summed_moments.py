"""Moments of linear maps, summed over the tasks so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.checks import FormError
from recall_lightning.measuring.curvature import KroneckerFactors
from recall_lightning.measuring.input_moments import empty_moments
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
    moments_from,
)
from recall_lightning.recall.settings import MomentSettings


class SumsState(TypedDict):
    """What a checkpoint holds of them; an older one has none at outputs."""

    old: dict[str, dict[str, torch.Tensor]]
    old_outputs: NotRequired[dict[str, dict[str, torch.Tensor]]]
    tasks: int
    mean: NotRequired[float]


Sums = tuple[dict[str, Moments], dict[str, Moments], int, float]


class SummedMoments:
    """What the tasks so far gave to each linear map, and what depended on it.

    Args:
        settings: Widths and ranks.

    Attributes:
        inputs: Name of a map to the moments of its inputs, summed over tasks.
        outputs: The same of the gradients at its outputs; the count is the number of tasks.
        tasks: How many tasks that is.
        mean: The means of their curvatures' diagonals, summed, by which those were divided; NaN
            where one is not known, as of checkpoints of earlier versions.
    """

    def __init__(self, settings: MomentSettings) -> None:
        self.settings = settings
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.inputs: dict[str, Moments] = {}
        self.outputs: dict[str, Moments] = {}
        self.tasks = 0
        self.mean = 0.0

    def add(self, measured: KroneckerFactors) -> None:
        """Add what was measured of a task, and count it; leave out what is not finite, and warn."""
        self.tasks += 1
        self.mean += math.nan if measured.mean is None else measured.mean
        finite = {moments: _is_finite(moments) for moments in measured.inputs.values()}
        unusable = [name for name, moments in measured.inputs.items() if not finite[moments]]
        sums: dict[tuple[Moments | None, Moments], Moments] = {}  # maps may share theirs
        for name, moments in measured.inputs.items():
            if name not in unusable:
                key = (self.inputs.get(name), moments)
                if key not in sums:
                    sums[key] = moments if key[0] is None else key[0].plus(moments)
                self.inputs[name] = sums[key]
        for name, outputs in measured.outputs.items():
            if name not in unusable and _is_finite(outputs):
                old = self.outputs.get(name)
                self.outputs[name] = outputs if old is None else old.plus(outputs)
        if unusable:
            rank_zero_warn(
                f"the inputs of {', '.join(unusable[:3])} hold NaN or infinite values: they are "
                "left out of what later merges keep"
            )

    def sums(self) -> Sums:
        """Return all of it, which no later sum changes."""
        return dict(self.inputs), dict(self.outputs), self.tasks, self.mean

    def put_back(self, sums: Sums) -> None:
        """Go back to what :meth:`sums` returned."""
        self.inputs, self.outputs = dict(sums[0]), dict(sums[1])
        self.tasks, self.mean = sums[2:]

    def fit_to(self, maps: Sequence[LinearMap], weights: Mapping[str, torch.Tensor]) -> None:
        """Before a task, fit what is known to maps that have grown, and drop what fits no more.

        Args:
            maps: The model's maps.
            weights: Its weights by name.

        Raises:
            ValueError: If moments are kept otherwise now than they were, and can't be summed.
        """
        self._fit_inputs(maps)
        self._fit_outputs(maps, weights)
        self._keep_as_now(maps)  # what has grown may be wide now

    def _fit_inputs(self, maps: Sequence[LinearMap]) -> None:
        """Leave out moments of inputs that are no longer what they were."""
        changed = []
        for linear_map in maps:
            old = self.inputs.get(linear_map.name)
            if old is None or old.width == linear_map.width:
                continue
            is_table = linear_map.kind in ("embedding", "bag")
            if is_table and old.width < linear_map.width:
                self.inputs[linear_map.name] = old.padded(linear_map.width)
            else:
                changed.append(linear_map.name)
                del self.inputs[linear_map.name]
                self.outputs.pop(linear_map.name, None)
        if changed:
            rank_zero_warn(
                f"the number of inputs of {', '.join(changed[:3])} (with 1 for a trained bias) has "
                "changed: what was known of their inputs in earlier tasks is dropped, and this "
                "task merges them by one number"
            )

    def _fit_outputs(self, maps: Sequence[LinearMap], weights: Mapping[str, torch.Tensor]) -> None:
        """Fit moments at outputs to a map that has more of them, or fewer."""
        for linear_map in maps:
            old = self.outputs.get(linear_map.name)
            if old is None or old.width == linear_map.outputs(weights):
                continue
            width = linear_map.outputs(weights)
            if width > old.width:  # nothing depended on the new ones
                self.outputs[linear_map.name] = old.padded(width)
            else:
                del self.outputs[linear_map.name]

    def state_dict(self) -> SumsState:
        """Return the tensors by map, and the number of tasks."""
        return {
            "old": {name: moments.state_dict() for name, moments in self.inputs.items()},
            "old_outputs": {name: moments.state_dict() for name, moments in self.outputs.items()},
            "tasks": self.tasks,
            "mean": self.mean,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is not of that form.
        """
        inputs = _restored(state_dict["old"], "old")
        outputs = _restored(state_dict.get("old_outputs", {}), "old_outputs")
        for name, moments in outputs.items():
            if isinstance(moments, RowCounts):
                raise FormError(f"statistics.moments.old_outputs.{name} lacks 'matrix'")
        self.inputs, self.outputs, self.tasks = inputs, outputs, state_dict["tasks"]
        self.mean = state_dict.get("mean", math.nan)

    def resume(self, maps: Sequence[LinearMap], device: torch.device) -> None:
        """After a resume, move the tensors to the module's device, and keep the rank of now.

        Raises:
            ValueError: If moments are kept otherwise now than they were, and can't be summed.
        """
        for linear_map in maps:
            self._take_together(linear_map)
        self._keep_as_now(maps)
        for kept in (self.inputs, self.outputs):
            moved: dict[Moments, Moments] = {}
            for name, moments in kept.items():
                if moments not in moved:
                    state = move_data_to_device(moments.state_dict(), device)
                    if "rank" in state:
                        state["rank"] = torch.tensor(min(self.settings.rank, moments.width))
                    moved[moments] = moments_from(state)
                kept[name] = moved[moments]

    def check_fits(self, maps: Sequence[LinearMap], weights: Mapping[str, torch.Tensor]) -> None:
        """Check the widths of what is known of the model's maps.

        Raises:
            ValueError: If one does not fit.
        """
        for linear_map in maps:
            name = linear_map.name
            outputs = linear_map.outputs(weights) if name in self.outputs else 0
            for entry, known, wanted in (
                ("old", self.inputs.get(name), linear_map.width),
                ("old_outputs", self.outputs.get(name), outputs),
            ):
                if known is not None and known.width != wanted:
                    raise FormError(
                        f"statistics.moments.{entry}.{name} is of {known.width} entries, and the "
                        f"model's map has {wanted}"
                    )

    def _take_together(self, linear_map: LinearMap) -> None:
        """Turn lookups of a checkpoint that counted them one by one into moments of their rows."""
        old = self.inputs.get(linear_map.name)
        if linear_map.kind != "bag" or not isinstance(old, RowCounts):
            return
        device, width = old.counts.device, self.settings.width
        wide = replace(linear_map, width=old.width)
        moments = empty_moments(wide, device, width, self.settings.rank)
        assert isinstance(moments, FullMoments | LowRankMoments)
        moments.add_diagonal(old.counts, 0)
        moments.count = old.count
        self.inputs[linear_map.name] = moments

    def _keep_as_now(self, maps: Sequence[LinearMap]) -> None:
        """Bring matrices that are too wide now to the rank; the other way there is none."""
        brought: dict[Moments, Moments] = {}
        for one in maps:
            for kept, ones in ((self.inputs, one.width - one.inputs), (self.outputs, 0)):
                old = kept.get(one.name)
                if old is None:
                    continue
                is_wide = old.width - ones > self.settings.width
                if isinstance(old, LowRankMoments) and not is_wide:
                    raise ValueError(
                        f"moments.width={self.settings.width} keeps a matrix of the moments of "
                        f"{one.name}, of {old.width} entries (with 1 for a trained bias), and the "
                        f"checkpoint has them of rank {old.rank}: resume with the moments.width "
                        "that it was written with"
                    )
                if isinstance(old, FullMoments) and is_wide:
                    if old not in brought:
                        brought[old] = LowRankMoments.of(old, min(self.settings.rank, old.width))
                    kept[one.name] = brought[old]


def _restored(states: Mapping[str, Mapping[str, torch.Tensor]], entry: str) -> dict[str, Moments]:
    moments: dict[str, Moments] = {}
    shared: dict[int, Moments] = {}  # as a checkpoint keeps what maps have in common
    for name, state in states.items():
        try:
            where = max((t.data_ptr() for t in state.values() if t.ndim), default=0)
            if where not in shared or not where:
                shared[where] = moments_from(state)
            moments[name] = shared[where]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FormError(f"statistics.moments.{entry}.{name} {what}") from error
    return moments


def _is_finite(moments: Moments) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in moments.state_dict().values())
