"""How much may be forgotten: limits, whether they are kept, and what happens where they are not."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import alert
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.checks import check_choice, first_of
from recall_lightning.metrics.record import TaskRecord
from recall_lightning.weights.naming import find_weights
from recall_lightning.weights.snapshot import Snapshot

OnLimit = Literal["warn", "stop", "rollback"] | Callable[..., None]

_ALWAYS = ("forgetting", "estimated_forgetting")
_DONE = {"stop": ": the fit stops", "rollback": ": the weights of its start are put back"}


@dataclass(frozen=True)
class Exceeded:
    """A limit that was not kept.

    Attributes:
        name: Of what.
        value: What was measured.
        limit: What was allowed.

    Example:
        >>> str(Exceeded("forgetting", 0.25, 0.1))
        'forgetting is 0.25, and its limit 0.1'
    """

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.4g}, and its limit {self.limit:.4g}"


class Limits:
    """Limits of what is lost, by name, and what happens where one is not kept.

    Args:
        by_name: ``"forgetting"``, ``"estimated_forgetting"``, or the name of a task or of a
            held-out set of no task, of which the limit is how much worse its score may have become.
            Before each name there may be ``continual/``, as in the log.
        on_limit: ``"warn"``, ``"stop"``, ``"rollback"``, or a function that is called with the
            Trainer, the module and a list of :class:`Exceeded`.

    Raises:
        ValueError: If a limit is no number from 0 on, or nothing of that name can happen.

    Attributes:
        exceeded: What was not kept so far, in plain Python.
        start: The weights of the task's start, where they may be put back.

    Example:
        >>> limits = Limits({"continual/forgetting": 0.1, "news": 0.05})
        >>> [str(one) for one in limits.not_kept({"forgetting": 0.3, "news": 0.01})]
        ['forgetting is 0.3, and its limit 0.1']
    """

    def __init__(self, by_name: Mapping[str, float], on_limit: OnLimit = "warn") -> None:
        for name, limit in by_name.items():
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not (number and 0 <= limit < math.inf):
                raise ValueError(f"limits[{name!r}]={limit!r} must be a number from 0 on")
        if not callable(on_limit):
            check_choice("on_limit", on_limit, "warn", "stop", "rollback")
        self.by_name = {str(n).removeprefix("continual/"): float(v) for n, v in by_name.items()}
        self.on_limit = on_limit
        self.exceeded: list[dict[str, Any]] = []
        self.start: Snapshot | None = None

    @property
    def rolls_back(self) -> bool:
        """Whether the weights of a task's start may be put back."""
        return bool(self.by_name) and self.on_limit == "rollback"

    def check_names(self, names: Iterable[str]) -> None:
        """Check that each limit is of something that is measured.

        Args:
            names: Those of tasks and held-out sets.

        Raises:
            ValueError: Naming the first that is not.
        """
        known = [*_ALWAYS, *names]
        for name in self.by_name:
            if name not in known:
                raise ValueError(
                    f"limits has {name!r}, and there are {first_of(known, most=8)}: name one of "
                    "those"
                )

    def check_callbacks(self, trainer: Trainer) -> None:
        """Check that a Trainer's callbacks can forget a task, if that may happen.

        Raises:
            ValueError: Naming one that cannot.
        """
        for callback in _task_aware(trainer) if self.rolls_back else []:
            if not callback.can_roll_back:
                raise ValueError(
                    f"on_limit='rollback' beside {type(callback).__name__}, which would go on as "
                    "if the task had been kept: use 'stop' or 'warn'"
                )

    def check_goes_on(self) -> None:
        """Check that training was not to stop.

        Raises:
            ValueError: If it was.
        """
        if self.on_limit == "stop" and self.exceeded:
            last = dict(self.exceeded[-1])
            task, _ = last.pop("task"), last.pop("step")
            raise ValueError(
                f"after {task!r} {Exceeded(**last)}, and on_limit='stop': take another model, or a "
                "monitor with other limits"
            )

    def start_task(self, pl_module: LightningModule) -> None:
        """Copy the weights, if they may be put back."""
        self.start = Snapshot.take(pl_module) if self.rolls_back else None

    def not_kept(self, values: Mapping[str, float]) -> list[Exceeded]:
        """Return the limits that are not kept; what was not measured keeps its own."""
        found = [Exceeded(n, values[n], limit) for n, limit in self.by_name.items() if n in values]
        return [one for one in found if one.value > one.limit]

    def look(
        self, trainer: Trainer, pl_module: LightningModule, record: TaskRecord, task: str, step: int
    ) -> None:
        """Look whether a record's last row keeps the limits, and do what is to be done.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            record: What was measured.
            task: The name of the task that has ended.
            step: The optimizer steps so far.

        Raises:
            ValueError: If weights are to be put back that no longer fit the model.
        """
        values = record.lost() if self.by_name else {}
        values |= {n: v for n, v in record.summary().items() if n == "forgetting"}
        for callback in _task_aware(trainer):
            values |= callback.estimates
        found = self.not_kept(values)
        if not found:
            return
        self.exceeded += [{"task": task, "step": step, **vars(one)} for one in found]
        said = f"after {task!r} {' and '.join(map(str, found))}"
        said += "" if callable(self.on_limit) else _DONE.get(self.on_limit, "")
        rank_zero_warn(f"ForgettingMonitor: {said}")
        alert(trainer, "more forgotten than allowed", said)
        if callable(self.on_limit):
            self.on_limit(trainer, pl_module, found)
        elif self.on_limit == "stop":
            trainer.should_stop = True
        elif self.on_limit == "rollback":
            self._roll_back(trainer, pl_module)
            record.roll_back(step)

    def _roll_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.start is not None
        live = find_weights(pl_module, self.start)
        self.start.check_shapes(live)
        with torch.no_grad():
            for name, weight in live.items():
                weight.copy_(self.start[name])
        for callback in _task_aware(trainer):
            callback.on_rollback(trainer, pl_module)


def _task_aware(trainer: Trainer) -> list[TaskAwareCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if isinstance(each, TaskAwareCallback)]
