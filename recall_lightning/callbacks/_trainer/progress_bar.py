"""What a Trainer's progress bar shows beside its own: items of callbacks."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

Items = Callable[[Trainer], Mapping[str, int | str]]


class _GetMetrics:
    """A progress bar's ``get_metrics`` with more items, and what it stands in place of."""

    def __init__(self, bar: ProgressBar, items: Items) -> None:
        self.items = items
        self.covered = bar.get_metrics
        self.covers_override = "get_metrics" in vars(bar)

    def __call__(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {**self.items(trainer), **self.covered(trainer, pl_module)}


def show_items(bar: ProgressBar | None, items: Items) -> None:
    """Have a progress bar show items in front of its own metrics, until :func:`hide_items`.

    A bar that shows items goes on with those that it was given first; None is no bar.

    Example:
        >>> from lightning.pytorch.callbacks import TQDMProgressBar
        >>> bar = TQDMProgressBar()
        >>> show_items(bar, lambda trainer: {"task": "red"})
        >>> hide_items(bar)
        >>> "get_metrics" in vars(bar)
        False
    """
    if bar is not None and not _shows_items(bar):
        bar.get_metrics = _GetMetrics(bar, items)  # type: ignore[method-assign]


def hide_items(bar: ProgressBar | None) -> None:
    """Give a progress bar back the ``get_metrics`` it had, its class's or a user's override."""
    if bar is None or not _shows_items(bar):
        return
    ours = vars(bar).pop("get_metrics")
    if ours.covers_override:
        bar.get_metrics = ours.covered  # type: ignore[method-assign]


def _shows_items(bar: ProgressBar) -> bool:
    return isinstance(vars(bar).get("get_metrics"), _GetMetrics)
