"""Metrics that a module computes by itself, and carries from one dataloader into the next."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchmetrics import Metric, MetricCollection

from recall_lightning.callbacks._trainer.metrics_apart import logged_objects


@dataclass
class _Seen:
    """What was last seen of a metric: its updates, those of other dataloaders, its value."""

    updates: int
    carried: bool = False
    value: float | None = None


class CarriedMetrics:
    """Finds where a score that is logged as a number comes from a metric of several dataloaders.

    ``self.log(name, self.metric.compute())`` in ``validation_step`` tells nobody what the number
    is. But a metric that was not reset since an earlier dataloader, is updated and computed with a
    batch, changes by it, and has the very value that is logged then, is what is logged.
    """

    def __init__(self) -> None:
        self._metrics: list[Metric] = []
        self._seen: dict[int, _Seen] = {}  # by the metric's id
        self._logged = (0.0, 0.0)  # sum and weight of the monitored numbers

    def start(self) -> None:
        """A validation begins."""
        self._metrics.clear()
        self._seen.clear()

    def enter(self, module: LightningModule, first: bool) -> None:
        """Before a dataloader's first batch: see which metrics hold earlier ones."""
        self._metrics = list(metrics_of(module))
        for metric in self._metrics:
            before = self._seen.get(id(metric))
            untouched = not first if before is None else before.updates == metric._update_count
            value = None if before is None else before.value
            updates = metric._update_count
            self._seen[id(metric)] = _Seen(updates, untouched and updates > 0 and not first, value)
        self._logged = (0.0, 0.0)

    def check(self, asking: str, trainer: Trainer, logged: Any) -> None:
        """After a batch: refuse the score if it is one of several dataloaders.

        Args:
            asking: The callback's name.
            trainer: The Trainer.
            logged: Lightning's record of the monitored number for this dataloader; None where there
                is none, or a metric object was logged.

        Raises:
            MisconfigurationException: If it is.
        """
        if not self._metrics:
            return
        carried = any(self._seen[id(metric)].carried for metric in self._metrics)
        score = self._last(logged) if carried else None
        objects = {id(each) for each in logged_objects(trainer)} if carried else set()
        for metric in self._metrics:
            if self._is_score(metric, score) and id(metric) not in objects:
                raise MisconfigurationException(
                    f"{asking}: what is logged as {logged.meta.name!r} is computed by one "
                    f"{type(metric).__name__} over several validation dataloaders: log the object "
                    "itself, self.log(name, metric), or give each dataloader one of its own (a "
                    "torch.nn.ModuleList)"
                )

    def _is_score(self, metric: Metric, score: float | None) -> bool:
        """Tell whether a batch changed a metric that was carried over into what was logged."""
        seen, value = self._seen[id(metric)], _value(metric)
        if metric._update_count <= seen.updates:  # not updated, or reset first
            seen.carried = False
        found = seen.carried and _same(value, score) and not _same(value, seen.value)
        seen.updates = metric._update_count
        seen.value = seen.value if value is None else value
        return found

    def _last(self, logged: Any) -> float | None:
        """Return the number that was logged with the last batch."""
        if logged is None or not logged.is_tensor or not logged.meta.is_mean_reduction:
            return None
        total, weight = float(logged.value), float(logged.cumulated_batch_size)
        total_before, weight_before = self._logged
        self._logged = (total, weight)
        return (
            None if weight == weight_before else (total - total_before) / (weight - weight_before)
        )


def metrics_of(module: LightningModule) -> Iterator[Metric]:
    """Yield a module's metrics, those in plain lists and dictionaries too."""
    loose = [each for value in vars(module).values() for each in _members(value)]
    found = [child for part in (module, *loose) for child in part.modules()]
    yield from {id(each): each for each in found if isinstance(each, Metric)}.values()


def _members(value: Any) -> Iterable[Metric | MetricCollection]:
    if isinstance(value, Mapping):
        value = list(value.values())
    members = value if isinstance(value, list | tuple) else [value]
    return [each for each in members if isinstance(each, Metric | MetricCollection)]


def _value(metric: Metric) -> float | None:
    """Return what a metric has been computed to since its last update, if it was."""
    computed: Any = metric._computed
    return float(computed) if getattr(computed, "numel", lambda: 0)() == 1 else None


def _same(value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return False
    return math.isclose(value, other, rel_tol=1e-3, abs_tol=1e-6)
