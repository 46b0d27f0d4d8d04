"""What a merge of running means adds to the running variances beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.weights.growth import Shapes
from recall_lightning.weights.sharding import local


def means_of_variances(shapes: Shapes) -> dict[str, str]:
    """Name the running mean of each running variance among weights.

    >>> means_of_variances({"0.running_mean": [2], "0.running_var": [2], "1.running_var": [2]})
    {'0.running_var': '0.running_mean'}
    """
    variances = [name for name in shapes if name.rpartition(".")[2] == "running_var"]
    means = {name: f"{name.removesuffix('running_var')}running_mean" for name in variances}
    return {name: mean for name, mean in means.items() if shapes.get(mean) == shapes[name]}


def spread_of_means(
    live: Tensor, snapshots: Sequence[Tensor], shares: Sequence[float | Tensor]
) -> Tensor:
    """Return Σᵢ wᵢ(mᵢ − m)², the live mean among them with what is left of 1, m = Σᵢ wᵢmᵢ.

    A running mean and variance describe a population of activations. By the law of total variance
    that of a mixture of populations is Σᵢ wᵢvᵢ, as of any other weight, and this.

    Args:
        live: The live model's running mean.
        snapshots: Those of the snapshots.
        shares: The snapshots' weights of the variance: a number or one an element, to 1 at most.

    Returns:
        A tensor of the mean's shape, of a DTensor this process's shard, in float32 or float64: 0 or
        more, and exactly 0 where one share is 1 or means are the same.

    Example:
        >>> spread_of_means(torch.tensor([0.0, 2.0]), [torch.tensor([2.0, 2.0])], [0.5])
        tensor([1., 0.])
    """
    wide = torch.promote_types(live.dtype, torch.float32)
    start = local(live).to(wide)
    away = [local(mean).to(start.device, wide) - start for mean in snapshots]
    own = [local(w).to(start) if isinstance(w, Tensor) else w for w in shares]
    middle, rest = torch.zeros_like(start), torch.ones_like(start)
    for share, distance in zip(own, away, strict=True):
        middle += share * distance
        rest -= share
    spread = rest.clamp(min=0) * middle**2
    for share, distance in zip(own, away, strict=True):
        spread += share * (distance - middle) ** 2
    return spread
