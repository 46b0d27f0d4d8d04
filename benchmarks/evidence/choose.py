"""How settings are chosen from the tuning runs."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise


def best_value(averages: Mapping[float, float], higher_is_better: bool) -> float:
    """Return the value of a hyperparameter whose average score is best.

    Example:
        >>> best_value({0.1: 0.5, 0.2: 0.7}, higher_is_better=True)
        0.2
    """
    return (max if higher_is_better else min)(averages, key=averages.__getitem__)


def matched_value(plasticity: Mapping[float, float], wanted: float) -> float:
    """Return the hyperparameter at which plasticity is as wanted, between two that were tried.

    Interpolated linearly in plasticity and in the logarithm of the value, between the neighbouring
    trials on the two sides of what is wanted that are the strongest protection; where all trials
    lie on one side, the one that comes nearest.

    Args:
        plasticity: By value, all values positive.
        wanted: The plasticity to match.

    Example:
        >>> round(matched_value({1.0: 0.9, 100.0: 0.7}, 0.8), 6)
        10.0
        >>> matched_value({1.0: 0.9, 100.0: 0.85}, 0.8)
        100.0
    """
    values = sorted(plasticity)
    for low, high in reversed(list(pairwise(values))):
        a, b = plasticity[low], plasticity[high]
        if a != b and min(a, b) <= wanted <= max(a, b):
            share = (wanted - a) / (b - a)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return min(values, key=lambda value: abs(plasticity[value] - wanted))


def interpolated(scores: Mapping[float, float], value: float) -> float:
    """Return a score between two trials, linearly in the logarithm of the value.

    Example:
        >>> interpolated({1.0: 0.9, 100.0: 0.7}, 10.0)
        0.8
    """
    below = max((v for v in scores if v <= value), default=min(scores))
    above = min((v for v in scores if v >= value), default=max(scores))
    if above <= below:
        return scores[below if value >= below else above]
    share = math.log(value / below) / math.log(above / below)
    return scores[below] + share * (scores[above] - scores[below])


def rounded(value: float) -> str:
    """Write a hyperparameter with three digits, as it goes on a command line.

    >>> rounded(12.3456), rounded(0.5)
    ('12.3', '0.5')
    """
    return f"{value:.3g}" if abs(value) < 1000 else str(round(value))


def at_most_half(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Tell whether the mean of ours is at most half of theirs."""
    return sum(ours) <= sum(theirs) / 2
