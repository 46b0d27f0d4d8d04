"""Last layers that were fitted after merges with one balance each, for those in between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from recall_lightning.weights.sharding import write_into


class HeadsState(TypedDict):
    """What a checkpoint holds of the layers that were fitted at a task's end."""

    keeps: list[float]
    weights: dict[str, Tensor]


def write_head_again(live: Mapping[str, Tensor], state: HeadsState, keep: float) -> None:
    """Write the last layer of a merge that is made again, without batches to fit it to.

    Between two merges whose layers were fitted it lies on a line, in the logarithm of ``keep``.

    Args:
        live: Name to weight, of which the layer's are written.
        state: The fitted ones, by ``keep``.
        keep: How many times the old counts.

    Example:
        >>> import torch
        >>> live = {"w": torch.zeros(1)}
        >>> heads = {"keeps": [1.0, 100.0], "weights": {"w": torch.tensor([[1.0], [3.0]])}}
        >>> write_head_again(live, heads, 10.0)
        >>> live["w"]
        tensor([2.])
    """
    first, share = _place(state["keeps"], keep)
    last = min(first + 1, len(state["keeps"]) - 1)
    between = {name: own[first].lerp(own[last], share) for name, own in state["weights"].items()}
    write_into({name: live[name] for name in between}, between)


def _place(keeps: Sequence[float], keep: float) -> tuple[int, float]:
    """Return the place before ``keep``, and how far it is from there to the next, in [0, 1]."""
    if keep >= keeps[-1]:
        return len(keeps) - 1, 0.0
    first = max(sum(each <= keep for each in keeps) - 1, 0)
    low, high = keeps[first], keeps[first + 1]
    return first, max(math.log(keep / low) / math.log(high / low), 0.0)
