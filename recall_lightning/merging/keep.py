"""One knob for every rule: what the old counts against the new."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.rules.base import Coefficient


def with_kept_odds(
    weights: Sequence[Mapping[str, Coefficient]], keep: float
) -> list[dict[str, Coefficient]]:
    """Multiply the odds of the snapshots' weights against the live model's by ``keep``.

    A weight w becomes keep·w / (1 + (keep − 1)·w), of several snapshots with the sum of all in the
    denominator: so 0 stays 0 and 1 stays 1, and of λF / (1 + λF) it multiplies λ. The matrices of
    linear maps are left as they are: their rules have read ``keep`` themselves.

    Args:
        weights: Of each snapshot, name to its weight.
        keep: More than 0; larger keeps more of the snapshots.

    Example:
        >>> with_kept_odds([{"w": 0.5}], keep=3.0)
        [{'w': 0.75}]
    """
    if keep == 1:
        return [dict(own) for own in weights]
    kept: list[dict[str, Coefficient]] = [{} for _ in weights]
    for name in weights[0]:
        own = [given[name] for given in weights]
        if isinstance(own[0], MapCoefficient):
            kept[0][name] = own[0]
            continue
        numbers: list[float | Tensor] = [w for w in own if not isinstance(w, MapCoefficient)]
        denominator = 1 + (keep - 1) * sum(numbers)
        for changed, number in zip(kept, numbers, strict=True):
            changed[name] = keep * number / denominator
    return kept
