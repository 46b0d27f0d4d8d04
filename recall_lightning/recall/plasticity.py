"""How much of the old a task's last merge may keep: as much as leaves the task its gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.distributions import Distribution

from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.predictions import KINDS, FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.compared_predictions import ComparedPredictions
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.divergence import mean_divergence
from recall_lightning.recall.front import FrontPoint, keep_of, measured_front, share_in_reach
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.process_means import sum_over_processes
from recall_lightning.recall.records import of_both
from recall_lightning.recall.statistics.recent_batches import last_with
from recall_lightning.recall.task_loss import UnknownLossError, Watch, task_losses
from recall_lightning.weights.sharding import write_into

Merged = TypeVar("Merged")

COMPARED_BATCHES = 4  # of the last ones, whose mean loss is compared, at most
_COMPARED_LABELS = 2048  # that are enough
_WITHOUT_GAIN = (1e12, 1.0, 1e-2, 1e-4, 1e-6)  # keep; the first is all of the old, to rounding
_SOMETHING = 0.05  # of the gain, that is left even where the old is to count
_LITTLE = 0.5  # of the gain, where nothing is said of what may be lost
_UNLIKELY = 30.0  # nats a sample, beyond which a loss of no known kind has a unit
_LEAST = 1e-30  # that a squared error counts


@dataclass(frozen=True)
class TaskGain:
    """What a task has brought on its last batches, and what a merge has left of that.

    A loss is taken for a mean negative logarithmic likelihood, as that of a classifier or language
    model is, and what is gained is likelihood, exp(−loss): a loss that was large to begin with then
    does not hide one that has become too large to be of use. A squared error has a unit; there the
    likelihood is that of a normal distribution of the error's own variance, 1 / √loss. What falls
    below 0 is none.

    Attributes:
        snapshot: The mean training loss under the snapshot.
        live: Under the live weights, before the merge.
        merged: Under the merged weights.
        is_of_values: Whether the loss is a squared error.

    Example:
        >>> round(TaskGain(snapshot=5.0, live=0.1, merged=0.15).share, 3)
        0.951
        >>> TaskGain(snapshot=0.1, live=0.1, merged=0.1).share
        nan
        >>> round(TaskGain(snapshot=4e8, live=1e8, merged=1.21e8, is_of_values=True).share, 3)
        0.818
    """

    snapshot: float
    live: float
    merged: float
    is_of_values: bool = False

    @property
    def losses(self) -> dict[str, float]:
        """The three by name, as ``RecallCallback.history`` has them."""
        return {"snapshot": self.snapshot, "live": self.live, "merged": self.merged}

    @property
    def is_positive(self) -> bool:
        """Whether anything was gained at all."""
        return not math.isnan(self.share)

    @property
    def share(self) -> float:
        """The part of the gain that is left, NaN where there was none."""
        before, now, after = self.snapshot, self.live, self.merged
        if not now < before or not math.isfinite(now):
            return math.nan
        if self.is_of_values and now >= 0:
            then, here, left = (1 / math.sqrt(max(loss, _LEAST)) for loss in (before, now, after))
            return (left - then) / (here - then) if here > then else math.nan
        return 1.0 + math.expm1(min(now - after, 50.0)) / -math.expm1(now - before)


@dataclass(frozen=True)
class _Try(Generic[Merged]):
    """A merge that stands, for now."""

    merged: Merged
    gain: TaskGain
    keep: float
    divergence: float | None

    @property
    def point(self) -> FrontPoint:
        return FrontPoint(self.keep, self.gain.share, self.gain.merged, self.divergence)


@dataclass(frozen=True)
class _Ends:
    """What a task's last batches tell of the weights that a merge lies between.

    Attributes:
        context: The task.
        predictions: Of which kind the model's are.
        counted: The batches that have a loss under the live weights.
        snapshot: Their mean loss under the snapshot.
        live: Under the live weights.
        of_snapshot: What is predicted under the snapshot, where that is compared.
        of_live: Under the live weights.
        of_values: Whether the loss is a squared error.
    """

    context: TaskContext
    predictions: FoundPredictions
    counted: Sequence[int]
    snapshot: float
    live: float
    of_snapshot: list[Tensor] | None
    of_live: list[Tensor] | None
    of_values: bool

    @property
    def is_gain(self) -> bool:
        """Whether the task has brought anything."""
        return TaskGain(self.snapshot, self.live, self.live, self.of_values).is_positive

    def gain(self, losses: Sequence[float] | None) -> TaskGain:
        """What a merge with these losses, if they are known, has left."""
        merged = _mean(self.context, losses, self.counted)
        return TaskGain(self.snapshot, self.live, merged, self.of_values)

    def divergence(self, outputs: list[Tensor] | None) -> float | None:
        """How far these predictions are from the snapshot's, in nats each."""
        return mean_divergence(self.context, self.predictions, self.of_snapshot, outputs)


class MeasuredPlasticity:
    """Finds the merge that keeps most of the old and leaves a share of what a task has brought.

    The old counts ``keep`` times against the new, the same number for all weights. The loss of the
    task's last batches grows with it. Some merges are tried on those batches and undone, the
    front, and the one that is made lies between two of them: see
    :func:`~recall_lightning.recall.front.measured_front`.

    Args:
        share: Of the gain in likelihood that is left, in (0, 1). None merges as the rule has it,
            and says so where that costs half of the gain or more.
        run: How the model is run.
        predictions: Of which kind the model's are, where the user says so.

    Raises:
        ValueError: If there is no such kind.
    """

    def __init__(
        self,
        share: float | None,
        run: ModelRun,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
    ) -> None:
        self.share = share
        self._run = run
        self._predictions = FoundPredictions(predictions)
        self._told: str | None = None

    def check_batch(self, context: TaskContext, batch: Any) -> None:
        """Warn if the training loss cannot be measured on a task's first batch."""
        if self.share is not None:
            when = "on its first batch; if it cannot at its end either"
            with undisturbed(context.pl_module):
                self._losses(context, [batch], when, _unwatched)

    def merge(
        self,
        context: TaskContext,
        live: Mapping[str, Tensor],
        before: Mapping[str, Tensor] | None,
        batches: Sequence[Any],
        merge: Callable[[float, bool], Merged],
        found: FoundPredictions | None = None,
        at_least: float = 0.0,
        refit: Callable[[], None] | None = None,
    ) -> tuple[Merged, dict[str, Any]]:
        """Merge in place, the most of the old that is allowed.

        Where the loss cannot be measured, the old counts once, as a rule has it. A task that has
        brought nothing may not lose by the merge what it had before. Batches that have no loss
        under the live weights do not count; a merge that has none where these have is not allowed.

        Args:
            context: The task, with its snapshots.
            live: The weights that ``merge`` writes.
            before: Copies of them; only needed where a share is to be left.
            batches: The task's last.
            merge: Merges the live weights in place, given ``keep`` and whether that was chosen by
                the front of merges that it has made before.
            found: What is known of the model's predictions: the loss of ``"values"`` has a unit.
                Where no kind is known, a loss of more than 30 under the live weights has one.
            at_least: How many times the old counts, of a task that has gained something, if that
                leaves a twentieth of it.
            refit: Fits a last layer to the merge that was made; called where no share is to be left
                and less than half of the gain is.

        Returns:
            What ``merge`` returned, and what an entry of ``RecallCallback.history`` says of it:
            ``keep``, and where the loss is known ``plasticity``, the share that is left, ``loss``,
            ``divergence`` and ``front``.
        """
        batches = compared_of(batches, view_of(context.pl_module, self._run.view))
        predictions = found or self._predictions
        compared = None
        if self.share is not None or found is not None:
            compared = ComparedPredictions(context, self._run, predictions, batches)
        ends = self._ends(context, batches, predictions, compared)
        if ends is None:
            return merge(1.0, False), {} if self.share is None else {"keep": 1.0}

        def made_with(keep: float, chosen: bool = False) -> _Try[Merged]:
            return tried_as(merge(keep, chosen), keep)

        def tried_as(merged: Merged, keep: float) -> _Try[Merged]:
            losses, outputs = self._measured(context, batches, compared)
            return _Try(merged, ends.gain(losses), keep, ends.divergence(outputs))

        def found_of(made: _Try[Merged]) -> dict[str, Any]:
            far = of_both("divergence", ends.divergence(ends.of_live), made.divergence)
            return {"plasticity": made.gain.share, "loss": made.gain.losses, **far}

        if self.share is None:
            made = made_with(1.0)
            if refit is not None and made.gain.share < _LITTLE:
                refit()
                made = tried_as(made.merged, made.keep)
            self._tell_cost(context, made.gain)
            return made.merged, found_of(made)
        assert before is not None

        def put_back() -> None:
            write_into({name: live[name] for name in before}, before)

        def tried(keep: float, chosen: bool = False) -> _Try[Merged]:
            put_back()
            return made_with(keep, chosen)

        try:
            if ends.is_gain:
                front = measured_front(lambda keep: tried(keep).point)
                of_share = keep_of(front, self.share)
                keep = max(of_share, min(at_least, keep_of(front, _SOMETHING)))
                made, is_share = tried(keep, chosen=True), keep == of_share
                in_reach = share_in_reach(front, self.share) == self.share
            else:
                front, made, is_share, in_reach = [], _without_loss(tried), True, True
        except BaseException:
            put_back()
            raise
        self._tell(context, made.keep, made.gain, is_share, in_reach)
        front_points = [vars(point) for point in front]
        return made.merged, {"keep": made.keep, **found_of(made), "front": front_points}

    def _ends(
        self,
        context: TaskContext,
        batches: Sequence[Any],
        predictions: FoundPredictions,
        compared: ComparedPredictions | None,
    ) -> _Ends | None:
        """Measure the live weights and the snapshot's; None where the loss is not known."""
        kind = None if predictions.kind is None else predictions.kind.name
        each, of_live = self._measured(context, batches, compared)
        if each is None:
            return None
        counted = [number for number, loss in enumerate(each) if math.isfinite(loss)]
        live = _mean(context, each, counted)
        of_values = kind == "values" or (kind not in KINDS and live > _UNLIKELY)
        with context.snapshots[-1].applied_to(context.pl_module):
            losses, of_snapshot = self._measured(context, batches, compared)
        snapshot = _mean(context, losses, counted)
        return _Ends(context, predictions, counted, snapshot, live, of_snapshot, of_live, of_values)

    def _measured(
        self, context: TaskContext, batches: Sequence[Any], compared: ComparedPredictions | None
    ) -> tuple[list[float] | None, list[Tensor] | None]:
        """Return the loss of each batch, and what is predicted of those that are compared."""
        watch = _unwatched if compared is None else compared.watched
        with undisturbed(context.pl_module):
            losses = self._losses(context, batches, "at its end", watch)
        if losses is None or compared is None:
            return losses, None
        return losses, compared.taken(context)

    def _losses(
        self, context: TaskContext, batches: Sequence[Any], when: str, watch: Watch
    ) -> list[float] | None:
        """Return the loss of each batch; None, with a warning, where not all processes know."""
        why, losses = None, []
        try:
            losses = task_losses(context, self._run, batches, watch)
        except UnknownLossError as error:
            why = str(error)
        finite = sum(math.isfinite(loss) for loss in losses)
        failed, known = (
            sum_over_processes(context.trainer, float(why is not None)),
            sum_over_processes(context.trainer, float(finite)),
        )
        if not failed and known:
            return losses
        why = why or (
            "another process cannot" if failed else "training_step returned no finite loss of any"
        )
        said = (
            f"RecallCallback cannot measure plasticity={self.share} of a task {when}, the merge at "
            f"its end takes its rule's own balance of old and new: {why}"
        )
        if self.share is not None and why != self._told and batches:
            rank_zero_warn(said)
            self._told = why
        return None

    def _tell(
        self, context: TaskContext, keep: float, gain: TaskGain, is_share: bool, in_reach: bool
    ) -> None:
        assert self.share is not None
        if not gain.is_positive:
            say = rank_zero_info if gain.merged <= gain.live else rank_zero_warn
            say(
                f"the task that ends at step {_step(context)} has gained nothing on "
                f"its last batches (loss {gain.snapshot:.4g} before, {gain.live:.4g} after): the "
                f"old counts {keep:.3g} times in its merge, which leaves a loss of "
                f"{gain.merged:.4g}"
            )
        elif is_share and not in_reach:
            rank_zero_warn(
                f"{_said(context, gain)}, though plasticity={self.share}: however little the old "
                f"counts, no merge leaves that much; in this one earlier tasks count {keep:.3g} "
                "times: ask for less, or use another end_rule, or end_rule='never'"
            )
        else:
            why = ""
            if not is_share:
                why = (
                    ", as each does once where a classifier's last layer is fitted anew: set "
                    f"plasticity={self.share} to have that share left"
                )
            said = f"in it, earlier tasks count {keep:.3g} times against the new one"
            rank_zero_info(f"{_said(context, gain)}; {said}{why}")

    def _tell_cost(self, context: TaskContext, gain: TaskGain) -> None:
        if gain.share < _LITTLE:
            rank_zero_warn(
                f"{_said(context, gain)}: set plasticity, as plasticity=0.9, to have it leave more"
            )


def compared_of(batches: Sequence[Any], view: ModelView) -> list[Any]:
    """Return those of a task's last batches whose loss tells what a merge costs.

    They are four, or as many as hold 2,048 class labels, which of a language model are its tokens.

    Example:
        >>> import torch
        >>> batches = [{"input_ids": torch.zeros(2, size, dtype=int)} for size in (64, 512, 512)]
        >>> [len(compared_of(some, ModelView())) for some in (batches[:1] * 9, batches)]
        [4, 2]
    """
    return last_with(list(batches)[-COMPARED_BATCHES:], _COMPARED_LABELS, view)


def _without_loss(tried: Callable[[float], _Try[Merged]]) -> _Try[Merged]:
    """Make the merge that keeps most of those that are no worse than the live weights."""
    for keep in _WITHOUT_GAIN:
        made = tried(keep)
        if made.gain.merged <= made.gain.live:
            break
    return made


def _unwatched(number: int, given: Any) -> AbstractContextManager[None]:
    return nullcontext()


def _said(context: TaskContext, gain: TaskGain) -> str:
    return (
        f"the merge at step {_step(context)} leaves {100 * gain.share:.0f} % of what the task has "
        f"gained (loss {gain.snapshot:.4g} before the task, {gain.live:.4g} after, "
        f"{gain.merged:.4g} merged)"
    )


def _step(context: TaskContext) -> int:
    return context.clock.steps_trained(context.trainer)


def _mean(context: TaskContext, losses: Sequence[float] | None, counted: Sequence[int]) -> float:
    """Return the mean over all processes' batches that count, infinite where one of them is."""
    own = [math.inf] if losses is None else [losses[number] for number in counted]
    total = math.fsum(math.inf if math.isnan(loss) else loss for loss in own)
    infinite = sum_over_processes(context.trainer, float(math.isinf(total)))
    total = sum_over_processes(context.trainer, 0.0 if math.isinf(total) else total)
    count = sum_over_processes(context.trainer, float(len(own)))
    return math.inf if infinite else total / max(count, 1.0)
