"""How much may be forgotten: limits, whether they are kept, and what happens where they are not."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.callbacks._trainer.loggers import alert
from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.optimizer_state import (
    StateOfParameters,
    copied_state,
    forget,
    put_back_state,
)
from recall_lightning.callbacks._trainer.other_callbacks import refuse_weight_averaging
from recall_lightning.callbacks._trainer.own_weights import (
    refuse_copies_of_weights,
    refuse_own_weights,
)
from recall_lightning.callbacks.task_aware import task_aware_callbacks
from recall_lightning.checks import check_choice, first_of
from recall_lightning.weights.naming import find_weights, named_weights
from recall_lightning.weights.sharding import reshard, write_into
from recall_lightning.weights.snapshot import Snapshot

OnLimit = Literal["warn", "stop", "rollback"] | Callable[..., None]

_ESTIMATES = ("estimated_forgetting", "quadratic_forgetting")
_ALWAYS = ("forgetting", *_ESTIMATES)
_NOT_ESTIMATED = (
    "ForgettingMonitor: the limit of {} was not looked at after {!r}: nothing is "
    "known of how far predictions have gone, as of outputs that are none, of a distribution of "
    "which torch knows no divergence, or where nothing but a last layer is merged, which is fitted "
    "anew: set predictions= of RecallCallback, register the divergence by "
    "torch.distributions.register_kl, or limit estimated_forgetting"
)
_DONE = {"stop": "the fit stops", "rollback": "the weights of its start are put back"}
_DONE_LATE = {
    "stop": "the next fit is refused",
    "rollback": "no validation came at its end, so that it cannot be rolled back any more",
}


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


@dataclass(frozen=True)
class EndedTask:
    """A task that has ended.

    Attributes:
        name: How it is called.
        visit: The number of its visit.
        step: The optimizer steps so far.
    """

    name: str
    visit: int
    step: int


class Limits:
    """Limits of what is lost, by name, and what happens where one is not kept.

    Args:
        by_name: ``"forgetting"``, ``"estimated_forgetting"``, ``"quadratic_forgetting"``, or the
            name of a task or of a held-out set of no task, of which the limit is how much worse its
            score may have become. Before each name there may be ``continual/``, as in the log.
        on_limit: ``"warn"``, ``"stop"``, ``"rollback"``, or a function that is called with the
            Trainer, the module and a list of :class:`Exceeded`.

    Raises:
        ValueError: If a limit is no number from 0 on, or nothing of that name can happen.

    Attributes:
        exceeded: What was not kept so far, in plain Python.
        start: The weights of the task's start, where they may be put back.
        optimizers: What optimizers remembered then.

    Example:
        >>> limits = Limits({"continual/forgetting": 0.1, "news": 0.05})
        >>> [str(one) for one in limits.not_kept({"forgetting": 0.3, "news": 0.01})]
        ['forgetting is 0.3, and its limit 0.1']
    """

    def __init__(self, by_name: Mapping[str, float], on_limit: OnLimit = "warn") -> None:
        if not isinstance(by_name, Mapping):
            raise ValueError(f"limits={by_name!r} must be a mapping of names to numbers")
        for name, limit in by_name.items():
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if not (number and 0 <= limit < math.inf):
                raise ValueError(f"limits[{name!r}]={limit!r} must be a number from 0 on")
        if not callable(on_limit):
            check_choice("on_limit", on_limit, "warn", "stop", "rollback")
        self.by_name = {str(n).removeprefix("continual/"): float(v) for n, v in by_name.items()}
        if len(self.by_name) < len(by_name):
            raise ValueError(
                f"limits={dict(by_name)!r} names one thing twice, with continual/ and without: "
                "give each one limit"
            )
        self.on_limit = on_limit
        self.exceeded: list[dict[str, Any]] = []
        self.start: Snapshot | None = None
        self.optimizers: StateOfParameters | None = None

    @property
    def rolls_back(self) -> bool:
        """Whether the weights of a task's start may be put back."""
        return bool(self.by_name) and self.on_limit == "rollback"

    @property
    def _of_estimates(self) -> dict[str, float]:
        return {name: limit for name, limit in self.by_name.items() if name in _ESTIMATES}

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
        """Check that a Trainer's callbacks measure what is limited, and can forget a task.

        Raises:
            ValueError: Naming what they don't or can't.
        """
        others = task_aware_callbacks(trainer)
        if self._of_estimates and not any(o.can_estimate for o in others):
            raise ValueError(
                f"limits has {next(iter(self._of_estimates))!r}, and nothing estimates it at a "
                "task's end: RecallCallback does, under its kfac rules, of tasks that are announced"
            )
        least = {"min_epochs": trainer.min_epochs or 0, "min_steps": trainer.min_steps or 0}
        for name, value in least.items() if self.on_limit == "stop" else ():
            if value > 1:
                raise ValueError(
                    f"on_limit='stop' cannot stop a Trainer with {name}={value} before that: leave "
                    "it out"
                )
        if self.rolls_back:
            puts_back = "ForgettingMonitor(on_limit='rollback') puts weights back"
            refuse_weight_averaging(trainer, puts_back)
        for callback in others if self.rolls_back else []:
            if not callback.can_roll_back:
                raise ValueError(
                    f"on_limit='rollback' beside {type(callback).__name__}, which would go on as "
                    "if the task had been kept: use 'stop' or 'warn'"
                )

    def check_goes_on(self, in_midst: bool) -> None:
        """Check that training was not to stop, and can be undone if need be.

        Args:
            in_midst: Whether a checkpoint's task goes on.

        Raises:
            ValueError: If not.
        """
        left = [each for each in self.exceeded if not each.get("mended")]
        if self.on_limit == "stop" and left:
            last = left[-1]
            found = Exceeded(last["name"], last["value"], last["limit"])
            raise ValueError(
                f"after {last['task']!r} {found}, and on_limit='stop': to go on all the same, do "
                "so with on_limit='warn' or 'rollback'"
            )
        if self.rolls_back and in_midst and self.start is None:
            raise ValueError(
                "on_limit='rollback', and the checkpoint is from the midst of a task and holds no "
                "weights of its start: resume with 'stop' or 'warn', or from one at a task's end"
            )

    def start_task(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights, and what optimizers remember of them, if they may be put back."""
        self.forget_start()
        if self.rolls_back:
            reshard(pl_module)
            self.start = Snapshot.take(pl_module)
            self.optimizers = copied_state(trainer.optimizers)

    def forget_start(self) -> None:
        """Free the copies, once nothing is put back any more."""
        self.start = self.optimizers = None

    def check_optimizers(self, trainer: Trainer, pl_module: LightningModule, stepped: bool) -> None:
        """Check that no optimizer undoes it where weights are put back.

        What an optimizer keeps in its state of a parameter is put back, too.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            stepped: Whether they have, so that they hold what they keep.

        Raises:
            MisconfigurationException: Naming the one that does.
        """
        if self.rolls_back:
            name = "ForgettingMonitor(on_limit='rollback')"
            if stepped:
                live = named_weights(pl_module)
                refuse_copies_of_weights(trainer.optimizers, live, name, forgets=True)
            else:
                refuse_own_weights(trainer.optimizers, name, forgets=True)

    def not_kept(self, values: Mapping[str, float]) -> list[Exceeded]:
        """Return the limits that are not kept; what was not measured keeps its own."""
        found = [Exceeded(n, values[n], limit) for n, limit in self.by_name.items() if n in values]
        return [one for one in found if one.value > one.limit]

    def unread(self) -> str:
        """Say which limits nobody looks at where nothing is validated, as the end of a sentence."""
        unread = [name for name in self.by_name if name not in _ESTIMATES]
        return f", and nobody looks at the limits of {first_of(unread)}" if unread else ""

    def go_back_to_a_merge(
        self, trainer: Trainer, pl_module: LightningModule, ended: EndedTask
    ) -> None:
        """Before a task's validation, go back to weights that keep the estimate's limit, and tell.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            ended: The task.
        """
        limits = self._of_estimates
        if not self.rolls_back or not limits:
            return
        for callback in task_aware_callbacks(trainer):
            found = self.not_kept({n: v for n, v in callback.estimates.items() if n in limits})
            done = found and callback.merge_within(trainer, pl_module, limits)
            if done:
                self._note(found, ended, "mended")
                _tell(trainer, ended.name, found, done)
                return

    def judge(
        self,
        trainer: Trainer,
        pl_module: LightningModule | None,
        values: Mapping[str, float],
        ended: EndedTask,
    ) -> bool:
        """Do what is to be done where measured values, or estimates, are beyond their limits.

        Args:
            trainer: The Trainer.
            pl_module: The model, which still has the weights of the task's end; None where it has
                not.
            values: What was measured, by name.
            ended: The task.

        Returns:
            Whether the task was rolled back.

        Raises:
            MisconfigurationException: If weights are to be put back that no longer fit the model.
        """
        if pl_module is not None:
            for callback in task_aware_callbacks(trainer):
                values = {**values, **callback.estimates}
            unknown = [name for name in self._of_estimates if name not in values]
            if unknown and ended.visit > 0:
                rank_zero_warn(_NOT_ESTIMATED.format(first_of(unknown), ended.name))
        found, rolled_back = self.not_kept(values), False
        stops = pl_module is not None and self.on_limit == "stop"
        self._note(found, ended, "stopped" if stops else None)
        if found:
            _tell(trainer, ended.name, found, self._done(undone=pl_module is not None))
        if found and pl_module is not None:
            rolled_back = self._act(trainer, pl_module, found)
        self.forget_start()
        return rolled_back

    def judge_estimate(
        self, trainer: Trainer, pl_module: LightningModule, ended: EndedTask
    ) -> bool:
        """After a fit, judge the estimate of its last task if that was not done at its end.

        That is so where the task has ended behind the last validation, as an early stop ends it.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            ended: The task.

        Returns:
            Whether the limit turned out not to be kept.
        """
        noted = {each["name"] for each in self.exceeded if each["visit"] == ended.visit}
        open_ones = self._of_estimates.keys() - noted
        for callback in task_aware_callbacks(trainer):
            values = {n: v for n, v in callback.estimates.items() if n in open_ones}
            if found := self.not_kept(values):
                self._note(found, ended, "stopped" if self.on_limit == "stop" else None)
                _tell(trainer, ended.name, found, self._done(undone=False))
                if callable(self.on_limit):
                    self.on_limit(trainer, pl_module, found)
                return True
        return False

    def _note(
        self,
        found: Iterable[Exceeded],
        ended: EndedTask,
        done: Literal["mended", "stopped"] | None = None,
    ) -> None:
        when = {"task": ended.name, "visit": ended.visit, "step": ended.step}
        self.exceeded += [when | ({done: True} if done else {}) | vars(one) for one in found]

    def _done(self, undone: bool) -> str:
        """Say what is done where a limit is not kept, of a task that still can be undone or not."""
        known = _DONE if undone else _DONE_LATE
        return "" if callable(self.on_limit) else known.get(self.on_limit, "")

    def _act(self, trainer: Trainer, pl_module: LightningModule, found: list[Exceeded]) -> bool:
        """Do as on_limit says; tell whether the task was rolled back."""
        if callable(self.on_limit):
            self.on_limit(trainer, pl_module, found)
        elif self.on_limit == "stop":
            trainer.should_stop = True
        elif self.on_limit == "rollback":
            with misconfiguration("ForgettingMonitor"):
                self._roll_back(trainer, pl_module)
        return self.on_limit == "rollback"

    def _roll_back(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.start is not None
        reshard(pl_module)
        live = find_weights(pl_module, self.start)
        self.start.check_shapes(live)
        late = [name for name in named_weights(pl_module) if name not in self.start]
        if late:
            rank_zero_warn(
                f"ForgettingMonitor: {first_of(late)} became trainable within the task, so there "
                "is no copy of before it: they stay as they are"
            )
        write_into(live, self.start)
        if self.optimizers is None:  # of a checkpoint of an earlier version
            forget(trainer.optimizers, live.values())
        else:
            put_back_state(trainer.optimizers, self.optimizers)
        for callback in task_aware_callbacks(trainer):
            callback.on_rollback(trainer, pl_module)


def _tell(trainer: Trainer, task: str, found: list[Exceeded], done: str) -> None:
    """Tell on the terminal and by an alert what was not kept, and what is done."""
    said = f"after {task!r} {' and '.join(map(str, found))}{': ' * bool(done)}{done}"
    rank_zero_warn(f"ForgettingMonitor: {said}")
    alert(trainer, "more forgotten than allowed", said)
