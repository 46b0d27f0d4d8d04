"""Merges that the next optimizer step takes back, as the weights themselves tell."""

from collections.abc import Mapping

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from recall_lightning.weights.sharding import is_sharded

_TENSORS, _VALUES = 16, 256  # of the model that are looked at
_NEAR = 0.2
_STEPS = 5  # after a merge that are watched
_Sample = dict[torch.device, Tensor]


class UndoneMerges:
    """Watches a sample of the weights over merges and the steps after them.

    A merge is undone if the weights are, a step after it, where they were before it: five times
    nearer than the merge had moved them, though none of the first steps after the merge before has
    gone a fifth as far. A step that only happens to lead back is as long as the merge's move; of
    merges after every step nothing can be told, as they may take back just what a step adds.

    Example:
        >>> weight = nn.Parameter(torch.randn(100))
        >>> watch = UndoneMerges({"weight": weight})
        >>> watch.observe_step()
        >>> _ = nn.init.zeros_(weight)
        >>> watch.observe_merge()
        >>> _ = nn.init.ones_(weight)
        >>> watch.observe_step()  # it leads elsewhere

    Args:
        live: The weights by name, of which the largest parameters are watched; of shards none.
    """

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        whole = {n: w for n, w in live.items() if isinstance(w, nn.Parameter)}
        largest = sorted(whole, key=lambda name: -whole[name].numel())[:_TENSORS]
        self._watched = {name: whole[name] for name in largest if not is_sharded(whole[name])}
        self._last: _Sample = {}
        self._steps: list[Tensor] = []  # how far they went, but for the first after a merge
        self._before: _Sample = {}  # the last merge; empty where none is watched
        self._told = False
        self._since_merge = 0

    def observe_step(self, merge_follows: bool = True) -> None:
        """See the weights after an optimizer step, before any merge.

        Args:
            merge_follows: Whether one may come after this step.

        Raises:
            ValueError: If a second merge has been undone; of the first a warning tells.
        """
        self._since_merge += 1
        if self._since_merge > _STEPS and not merge_follows:
            self._last = {}
            return
        now = _sample(self._watched)
        if not _are_alike(now, self._last):  # a head has grown in place
            self._before, self._last, self._steps = {}, {}, []
        if self._before:
            self._compare(now)
            self._steps = []
        elif self._last:
            self._steps.append(_distance(now, self._last))
        self._before, self._last = {}, now

    def observe_merge(self) -> None:
        """See the weights after a merge that came after the last step."""
        self._before, self._last = self._before or self._last, _sample(self._watched)
        self._since_merge = 0

    def _compare(self, now: _Sample) -> None:
        if not self._steps:
            return
        merged = float(_distance(self._last, self._before))
        farthest = max(map(float, [*self._steps, _distance(now, self._before)]))
        if not farthest < _NEAR * merged:
            return
        what = (
            "the optimizer step after a merge has put the weights back where they were before it: "
            "something keeps weights of its own (the optimizer, a callback or the module's "
            "optimizer_step) and writes them into the model, so that no merge holds"
        )
        if self._told:
            raise ValueError(f"{what}; train without that, or without merging")
        self._told = True
        rank_zero_warn(f"{what}; another such step ends the fit")


@torch.no_grad()
def _sample(weights: Mapping[str, Tensor]) -> _Sample:
    """Copy some values of weights, those on one device together."""
    some: dict[torch.device, list[Tensor]] = {}
    for weight in weights.values():
        values = weight.detach().reshape(-1)[:: max(1, weight.numel() // _VALUES)]
        some.setdefault(weight.device, []).append(values)
    return {device: torch.cat(values).float() for device, values in some.items()}


def _are_alike(now: _Sample, then: _Sample) -> bool:
    """Tell whether two samples are of the same values, as far as there is an earlier one."""
    return all(device in now and now[device].shape == then[device].shape for device in then)


def _distance(one: _Sample, other: _Sample) -> Tensor:
    """Return a distance, on a device: nothing waits for it yet."""
    moved = [(one[device] - other[device]).square().sum() for device in one]
    return torch.stack([each.to(moved[0].device) for each in moved]).sum().sqrt()
