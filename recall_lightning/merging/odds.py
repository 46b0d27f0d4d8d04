"""One knob for every rule: what the old counts against the new."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from recall_lightning.merging.coefficients import Coefficient, MapCoefficient


def with_kept_odds(
    weights: Sequence[Mapping[str, Coefficient]], keep: float
) -> list[dict[str, Coefficient]]:
    """Multiply the odds of the snapshots' weights against the live model's by ``keep``.

    A weight w becomes keep·w / (1 + (keep − 1)·w), of several snapshots with the sum of all in the
    denominator: so 0 stays 0 and 1 stays 1, and of λF / (1 + λF) it multiplies λ. The matrices of
    linear maps are left as they are: their rules have read ``keep`` themselves. So are weights that
    have no odds, as they sum to more than 1: a merge refuses them by what they are.

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
        for changed, weight in zip(kept, _with_odds(own, keep), strict=True):
            changed[name] = weight
    return kept


def _with_odds(own: Sequence[Coefficient], keep: float) -> Sequence[Coefficient]:
    numbers: list[float | Tensor] = [w for w in own if not isinstance(w, MapCoefficient)]
    total = sum(numbers)
    if len(numbers) < len(own) or (isinstance(total, float) and total > 1 + 1e-9):
        return own
    kept = [keep * number / (1 + (keep - 1) * total) for number in numbers]
    # rounding may lead an all but whole weight out of its range
    return [w.clamp(max=1.0) if isinstance(w, Tensor) else min(w, 1.0) for w in kept]
