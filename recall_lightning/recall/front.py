"""The front between what a task has learned and what was known before: merges tried, one chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

POINTS = 7  # at least this many merges are tried, unless they are all alike
_STEP = 32.0  # between the first tries, which find the range
_RANGE = 32.0**4
_NEARLY_ALL = 0.99  # of the gain: nothing is sought beyond
_WORSE = 0.1  # of what the best loses
_LITTLE = 0.3
_ALIKE = 0.02  # points nearer than that need none between them
_LEAST = 1e-4  # that is told from nothing, and from all


@dataclass(frozen=True)
class FrontPoint:
    """A merge that was tried at a task's end.

    Attributes:
        keep: How many times the old counted against the new: towards 0 the merge leaves the live
            weights, towards infinity it puts back the snapshot.
        plasticity: The share that it leaves of what the task has gained on its last batches, see
            :class:`~recall_lightning.recall.plasticity.TaskGain`.
        loss: The training loss of those batches.
        divergence: How far the merged model's predictions on them are from the snapshot's: the mean
            of KL(snapshot ‖ merged), in nats a prediction; None where it is not known what the
            model predicts.
    """

    keep: float
    plasticity: float
    loss: float
    divergence: float | None = None


def measured_front(tried: Callable[[float], FrontPoint]) -> list[FrontPoint]:
    """Try some seven merges that lie evenly between the live weights and the snapshot.

    Which ones does not depend on what is chosen afterwards. First ``keep`` goes from 1 by factors
    of 32, down until nearly all of the gain is left and up until little of it is; then the widest
    gap is halved, again and again. Gaps are measured in the root of what is lost of the gain, so
    that points lie closer where little is.

    Args:
        tried: Makes a merge and tells what it is.

    Returns:
        The points, by ``keep``.

    Example:
        >>> front = measured_front(lambda keep: FrontPoint(keep, 1 / (1 + keep), loss=0.0))
        >>> [round(point.plasticity, 2) for point in front]
        [1.0, 0.97, 0.85, 0.7, 0.5, 0.15, 0.03]
    """
    front = [tried(1.0)]
    while front[0].plasticity < _NEARLY_ALL and front[0].keep > 1 / _RANGE:
        front.insert(0, tried(front[0].keep / _STEP))
    while front[-1].plasticity > _LITTLE and front[-1].keep < _RANGE:
        front.append(tried(front[-1].keep * _STEP))
    while 1 < len(front) < POINTS:
        gaps = [abs(_lost(low) - _lost(high)) for low, high in pairwise(front)]
        widest = max(range(len(gaps)), key=gaps.__getitem__)
        if gaps[widest] < _ALIKE:
            break
        low, high = front[widest : widest + 2]
        front.insert(widest + 1, tried(math.sqrt(low.keep * high.keep)))
    return front


def share_in_reach(front: Sequence[FrontPoint], plasticity: float) -> float:
    """Return the share that is sought in place of one that no merge leaves.

    Where a last layer is fitted anew, or the merge changes little, what is left may end below the
    share however little the old counts. What is sought then may lose a tenth more than the best of
    those that were tried: as many of them may be alike, and the old count for nothing in one.

    Args:
        front: Points by ``keep``.
        plasticity: The share, in (0, 1).

    Returns:
        The share itself, if one of them leaves it, or it still grows towards all of the gain.

    Example:
        >>> flat = [FrontPoint(1e-6, 0.9, 0.0), FrontPoint(1.0, 0.9, 0.0), FrontPoint(32, 0.5, 0.0)]
        >>> round(share_in_reach(flat, 0.95), 3), round(share_in_reach(flat, 0.85), 3)
        (0.89, 0.85)
    """
    best = max(point.plasticity for point in front)
    grows = front[0].plasticity == best >= _NEARLY_ALL
    return plasticity if plasticity <= best or grows else best - _WORSE * (1 - best)


def keep_of(front: Sequence[FrontPoint], plasticity: float) -> float:
    """Return how much of the old to keep so that a share of the gain is left.

    Between two points the logarithm of the odds of what is left is taken to be linear in that of
    ``keep``; before the first and behind the last, to fall as fast as it grows. Coming from the
    live weights, the first place with that share counts, and where there is none, that with the
    share which is in reach.

    Args:
        front: Points by ``keep``.
        plasticity: The share, in (0, 1).

    Example:
        >>> front = [FrontPoint(keep, 1 / (1 + keep), 0.0) for keep in (0.01, 0.1, 1.0)]
        >>> [round(keep_of(front, share), 3) for share in (0.995, 0.8, 0.5, 0.2)]
        [0.005, 0.25, 1.0, 4.0]
    """
    plasticity = share_in_reach(front, plasticity)
    wanted, last = _log_odds(plasticity), front[-1]
    start = next((n for n, point in enumerate(front) if point.plasticity >= plasticity), None)
    if start is None:
        return front[0].keep * math.exp(_log_odds(front[0].plasticity) - wanted)
    for low, high in pairwise(front[start:]):
        if high.plasticity < plasticity:
            above, below = _log_odds(low.plasticity), _log_odds(high.plasticity)
            if above == below:  # both all but nothing, or all but all
                return low.keep
            return low.keep * (high.keep / low.keep) ** ((above - wanted) / (above - below))
    return last.keep * math.exp(_log_odds(last.plasticity) - wanted)


def _log_odds(share: float) -> float:
    share = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(share / (1 - share))


def _lost(point: FrontPoint) -> float:
    """The root of what is lost of the gain, in [0, 1]."""
    return math.sqrt(min(max(1 - point.plasticity, 0.0), 1.0))
