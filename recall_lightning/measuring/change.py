"""Changes in a number that training brings forth: a baseline, and a detector of ``river`` on it."""

from __future__ import annotations

import copy
import math
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recall_lightning.checks import check_choice

if TYPE_CHECKING:
    from river.base import DriftDetector

MEMORY = 30  # values over which baselines forget
_FIRST = 10  # values from which a baseline is made before any is compared with it
_FARTHEST, _PULL = 4.0, 2.0  # standard deviations that one value counts, and moves a baseline by
_SLACK = 1.0  # standard deviations above the baseline that are no change, however long
_LEAST_RISE = 0.05  # of what values have fallen by, that a standard deviation is at least
_RECENT = 5  # values whose mean tells a rise from a fall
_CALM = 2.0  # a run of values above the baseline of less than this is no sign of a change


class ChangeDetector:
    """Tells when a number has risen for good: a running loss, a distance.

    Each value is compared with a baseline of those before it, a mean and a standard deviation that
    forget over 30 values, so that a loss that falls is no change and its scale does not matter. A
    loss that has fallen to almost nothing, on data that the model knows by heart, may rise a
    hundredfold by a few unlucky steps: the standard deviation is a twentieth at least of what
    values have fallen by from where a change first counts, the median of 30 there. Values that
    point to a change move the baseline only once 30 of them have not proved one. The distance, in
    standard deviations and at most four of them, goes into a detector of ``river``, which decides;
    a fall is none.

    Source: Page (1954), "Continuous Inspection Schemes", for ``"page_hinkley"``; Bifet and Gavaldà
    (2007) for ``"adwin"``; Raab et al. (2020) for ``"kswin"``.

    Args:
        detector: ``"page_hinkley"``, ``"adwin"``, ``"kswin"``, or a drift detector of ``river``,
            which is copied.
        least: Values before the first change that counts, 1 or more.

    Raises:
        ValueError: For another name.
        ModuleNotFoundError: Without ``river``.

    Example:
        >>> detector = ChangeDetector("page_hinkley", least=20)
        >>> values = [1.0, 0.9] * 20 + [3.0] * 9
        >>> [step for step, value in enumerate(values) if detector.update(value)]
        [47]
    """

    def __init__(self, detector: str | DriftDetector = "page_hinkley", least: int = 1) -> None:
        self._made_by = detector_of(detector)
        self._least = least
        self.restart()

    def restart(self) -> None:
        """Forget all values."""
        self._values: list[float] = []
        self._recent: list[float] = []
        self._mean = self._variance = self._run = 0.0
        self._began = -math.inf  # the values that it fell from; there are none yet
        self._suspected = 0  # values in a row that point to a change
        self._detector = copy.deepcopy(self._made_by)

    @property
    def is_calm(self) -> bool:
        """Whether nothing points to a change now."""
        return self._run < _CALM

    @property
    def holds(self) -> bool:
        """Whether values are kept out of the baseline, as they point to a change."""
        return 0 < self._suspected <= MEMORY

    @property
    def rises(self) -> bool:
        """Whether the last five values are above the baseline on average."""
        return sum(self._recent) > 0

    def update(self, value: float, counts: bool = True) -> bool:
        """Take the next value; tell whether it has risen for good.

        What is not finite is passed over.

        Args:
            value: The value.
            counts: Whether a change that is told now would be one.
        """
        if not math.isfinite(value):
            return False
        deviation = self._deviation(value)
        self._values.append(value)
        if len(self._values) == max(_FIRST, self._least):
            self._began = median(self._values[-MEMORY:])
        self._recent = [*self._recent[1 - _RECENT :], deviation]
        self._run = max(0.0, self._run + deviation - _SLACK)
        self._suspected = 0 if self.is_calm else self._suspected + 1
        self._detector.update(deviation)
        if not self._detector.drift_detected:
            return False
        if counts and self.rises and len(self._values) >= self._least:
            return True
        self._detector = copy.deepcopy(self._made_by)  # one that has fired starts anew
        return False

    def _deviation(self, value: float) -> float:
        """Return how far a value is from the baseline, and move that."""
        seen, off = len(self._values), value - self._mean
        fallen = max(0.0, self._began - self._mean)
        scale = max(math.sqrt(self._variance), _LEAST_RISE * fallen, 1e-12)
        deviation = 0.0
        if seen >= _FIRST:
            deviation = max(-_FARTHEST, min(_FARTHEST, off / scale))
            off = max(-_PULL * scale, min(_PULL * scale, off))
        if self.holds:
            return deviation
        weight = max(1 / (seen + 1), 1 / MEMORY)
        self._mean += weight * off
        self._variance = (1 - weight) * (self._variance + weight * off * off)
        return deviation

    def state_dict(self) -> dict[str, Any]:
        """Return the values so far, (values,) float64, from which everything follows."""
        return {"values": torch.tensor(self._values, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, by taking its values once more."""
        self.restart()
        for value in state_dict["values"].tolist():
            self.update(value)


class RunningDistance:
    """How far vectors are from those before them: a mean and a variance an entry that forget.

    Example:
        >>> distance = RunningDistance()
        >>> for step in range(20):
        ...     _ = distance.update(torch.tensor([0.0, step % 2]))
        >>> distance.update(torch.tensor([0.0, 0.5])) < 0 < distance.update(torch.tensor([5.0, 5]))
        True
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget all vectors."""
        self._mean: Tensor | None = None
        self._variance: Tensor | None = None
        self._seen = 0

    def update(self, vector: Tensor, hold: bool = False) -> float:
        """Take the next vector, (width,); return the log of its mean squared distance in variances.

        NaN for the first ones, of which the baseline is made, and where the width has changed.

        Args:
            vector: The vector.
            hold: Whether to leave the baseline as it is.
        """
        vector = vector.detach().double().cpu()
        if self._mean is None or self._variance is None or self._mean.shape != vector.shape:
            self._mean, self._variance, self._seen = vector, torch.zeros_like(vector), 1
            return math.nan
        off = vector - self._mean
        weight = max(1 / (self._seen + 1), 1 / MEMORY)
        # an entry that never varied, as of a unit that is dead, may not outweigh the others
        scale = self._variance + 1e-3 * self._variance.mean() + 1e-24
        distance = float((off.square() / scale).mean().log())
        if hold:
            return distance
        self._mean = self._mean + weight * off
        self._variance = (1 - weight) * (self._variance + weight * off.square())
        self._seen += 1
        return distance if self._seen > _FIRST else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline."""
        return {"mean": self._mean, "variance": self._variance, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._mean, self._variance = state_dict["mean"], state_dict["variance"]
        self._seen = state_dict["seen"]


def detector_of(detector: str | DriftDetector) -> DriftDetector:
    """Return a drift detector of ``river`` by its name, set for values in standard deviations.

    Raises:
        ValueError: For another name, or something else.
        ModuleNotFoundError: Without ``river``.

    Example:
        >>> type(detector_of("kswin")).__name__
        'KSWIN'
    """
    if isinstance(detector, str):
        check_choice("detector", detector, "page_hinkley", "adwin", "kswin")
    try:
        from river import base, drift
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "changes are found by the package river, which is not installed: pip install "
            "'recall-lightning[drift]'"
        ) from error
    if isinstance(detector, str):
        return {
            # rises of a standard deviation are none; twenty beyond that in all are one
            "page_hinkley": lambda: drift.PageHinkley(1, _SLACK, threshold=20, alpha=1, mode="up"),
            "adwin": lambda: drift.ADWIN(clock=1),
            "kswin": lambda: drift.KSWIN(alpha=1e-4, window_size=60, stat_size=20, seed=0),
        }[detector]()
    if not isinstance(detector, base.DriftDetector):
        raise ValueError(f"detector={detector!r} must be a name or a drift detector of river")
    return detector


def mean_vector(states: Tensor) -> Tensor:
    """Return the mean over samples and places of what a block puts out, (width,).

    Args:
        states: (samples, width), (samples, places, width), or (samples, width, height, …) of a
            convolution, which has more than three axes.

    Example:
        >>> mean_vector(torch.ones(2, 5, 3)).shape, mean_vector(torch.ones(2, 7, 4, 4)).shape
        (torch.Size([3]), torch.Size([7]))
    """
    width = 1 if states.ndim > 3 else states.ndim - 1
    return states.detach().float().movedim(width, -1).flatten(0, -2).mean(dim=0)
