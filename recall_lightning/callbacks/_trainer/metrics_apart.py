"""A torchmetrics object that is logged for several dataloaders has a score of its own for each."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

# States reduced by these are those of all batches, whatever they were gathered in.
_MERGED_EXACTLY = (dim_zero_sum, dim_zero_max, dim_zero_min, dim_zero_cat)

_State = list[tuple[dict[str, Tensor | list[Tensor]], int]]  # of a metric and those inside it


class MetricsApart:
    """Keeps the metric objects of a validation apart by dataloader; one of these for a Trainer.

    Lightning computes what was logged for a dataloader when the next one begins, and resets all
    metrics after the last one. An object that is logged for several would go on from those before,
    and so holds their samples too. Here it starts anew with each, before its first batch: whatever
    Lightning logs of it, anywhere, is the dataloader's own. What the object had gathered comes back
    behind the last batch, before the module's ``on_validation_epoch_end``, so that a total that is
    computed there is of all dataloaders as ever.

    Where states of several dataloaders cannot be put together (``full_state_update``, or a
    reduction other than sum, maximum, minimum and concatenation), a total is refused.
    """

    def __init__(self) -> None:
        self._loader = 0
        self._kept: dict[int, tuple[Metric, list[_State]]] = {}  # a metric's hash is its state's
        self._partial: list[Metric] = []  # that hold the last dataloader alone

    def start(self) -> None:
        """A validation begins."""
        self._loader = 0
        self._kept.clear()
        self._partial.clear()

    def enter(self, trainer: Trainer, loader: int) -> None:
        """Before a batch of a dataloader: if it is another, let its metrics begin with it."""
        if loader == self._loader:
            return
        self._loader = loader
        # first all, then reset: those of a collection may share their states
        ended = [metric for metric in logged_objects(trainer) if _updates(metric)]
        for metric in ended:
            _, states = self._kept.setdefault(id(metric), (metric, []))
            states.append(_state_of(metric))
        for metric in ended:
            metric.reset()

    def leave(self) -> None:
        """After the last batch: give each metric back all that it had gathered."""
        for metric, states in self._kept.values():
            if not _updates(metric):
                _restore(metric, states.pop())
            for state in states:
                if not _merge(metric, state):
                    self._partial.append(metric)
                    break
            for part in _parts(metric):
                part._computed = None
        self._kept.clear()

    def check_totals(self, asking: str) -> None:
        """Refuse a total that was computed where there is none.

        Raises:
            MisconfigurationException: If it was.
        """
        for metric in self._partial:
            if metric._computed is not None:
                raise MisconfigurationException(
                    f"{asking}: one {type(metric).__name__} is logged for several validation "
                    "dataloaders and computed over all of them too, which its state does not "
                    "allow: give each dataloader, and the total, an object of its own (a "
                    "torch.nn.ModuleList)"
                )


_APART: WeakKeyDictionary[Trainer, MetricsApart] = WeakKeyDictionary()


def metrics_apart(trainer: Trainer) -> MetricsApart:
    """Return the one that a Trainer's callbacks share."""
    return _APART.setdefault(trainer, MetricsApart())


def logged_objects(trainer: Trainer) -> list[Metric]:
    """Return the metric objects that the current validation has logged so far, each once."""
    results = trainer._results
    logged = [] if results is None else results.result_metrics
    objects: list[Any] = [each.value for each in logged if not (each.is_tensor or each.has_reset)]
    return list({id(each): each for each in objects}.values())


def _parts(metric: Metric) -> Iterator[Metric]:
    """Yield a metric and those that it wraps."""
    return (part for part in metric.modules() if isinstance(part, Metric))


def _updates(metric: Metric) -> int:
    return max(part._update_count for part in _parts(metric))


def _state_of(metric: Metric) -> _State:
    """Take the states, which a reset replaces; lists it clears."""
    return [
        (
            {k: list(v) if isinstance(v, list) else v for k, v in part.metric_state.items()},
            part._update_count,
        )
        for part in _parts(metric)
    ]


def _restore(metric: Metric, state: _State) -> None:
    for part, (kept, updates) in zip(_parts(metric), state, strict=True):
        for name, value in kept.items():
            setattr(part, name, value)
        part._update_count = updates


def _merge(metric: Metric, state: _State) -> bool:
    """Add a state, and tell whether that is possible."""
    parts = list(_parts(metric))
    if not all(_is_mergeable(part) for part in parts):
        return False
    for part, (kept, updates) in zip(parts, state, strict=True):
        incoming: dict[str, Any] = dict(kept)
        part.merge_state(incoming)
        part._update_count += updates
    return True


def _is_mergeable(metric: Metric) -> bool:
    if metric.full_state_update is not False or metric.dist_sync_on_step:
        return False
    return all(reduction in _MERGED_EXACTLY for reduction in metric._reductions.values())
