"""Notices that the data has changed, and has the task end where it had not yet."""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from recall_lightning.callbacks._trainer.loggers import log_scalars
from recall_lightning.measuring.change import ChangeDetector
from recall_lightning.metrics.record import FoundBoundary
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.drift.earlier_weights import EarlierWeights, EarlierWeightsState
from recall_lightning.recall.drift.signals import TrainingSignals
from recall_lightning.recall.settings import DriftSettings
from recall_lightning.recall.statistics.recent_batches import RecentBatches, batch_bytes

_EVERY = 4  # optimizer steps after which the weights are copied anew, if nothing points to a change
_MOST = 24  # steps that a copy may lie back


class DriftState(TypedDict):
    """What a checkpoint holds of it."""

    values: dict[str, Tensor]
    mean: NotRequired[Tensor | None]
    variance: NotRequired[Tensor | None]
    seen: int
    changes: list[FoundBoundary]
    weights: EarlierWeightsState


class DriftWatch:
    """Watches what training brings forth for a change, and keeps the weights from before one.

    A change shows some steps after it has begun. So a copy of the weights is kept from when
    nothing pointed to it: with that copy, and on the batches until then, the task is ended, and
    what was trained since is added to where the next one starts.

    Args:
        settings: What is watched, and by which detector.
        recent: The last batches, which are to be of the task that ends.

    Attributes:
        changes: Those that were noticed; see :class:`~recall_lightning.RecallCallback`.
    """

    def __init__(self, settings: DriftSettings, recent: RecentBatches) -> None:
        self.changes: list[FoundBoundary] = []
        self._recent = recent
        self._signals = TrainingSignals(settings.signals)
        self._detectors = {
            name: ChangeDetector(settings.detector, settings.minimal_steps)
            for name in settings.signals
        }
        self._weights = EarlierWeights()
        self._least, self._unseen = settings.minimal_steps, 0

    def _say_unseen(self, signals: Mapping[str, float]) -> None:
        """Warn once where nothing that is watched has a finite value for as long as a task is."""
        self._unseen = 0 if any(map(math.isfinite, signals.values())) else self._unseen + 1
        if self._unseen == self._least:
            rank_zero_warn(
                f"RecallCallback(boundaries='drift') has seen no finite {' or '.join(signals)} in "
                f"{self._unseen} steps, so no change is noticed: where the module optimises by "
                "hand, use self.manual_backward(loss)"
            )

    def start_task(self, context: TaskContext) -> None:
        """Start anew; go on with what was trained of this task before it was known to be one."""
        self._weights.go_on(context.pl_module)
        self._weights.forget()
        visit = context.clock.visit or 0
        self.changes = [change for change in self.changes if change["visit"] < visit]
        self._signals.distance.restart()
        for detector in self._detectors.values():
            detector.restart()
        self._listen(context)

    def start_fit(self, context: TaskContext, resumed: bool) -> None:
        """Go on listening.

        Args:
            context: The task that a checkpoint, or another fit, has left.
            resumed: Whether a checkpoint has. Another fit may be of another model, or of weights
                that were put back: what an earlier one had trained since a change is not for it.
        """
        if not resumed:
            self._weights.forget()
        self._weights.resume(context.pl_module)
        self._listen(context)

    def _listen(self, context: TaskContext) -> None:
        self._recent.spare = _MOST * context.trainer.accumulate_grad_batches
        self._signals.listen(context.pl_module, context.structure.blocks)

    def release(self) -> None:
        """At a fit's end, leave nothing on the module."""
        self._signals.stop()

    def start_batch(self) -> None:
        """See a batch come, after whatever runs the model on it without training."""
        self._signals.start_batch()
        self._weights.batches += 1

    def observe_loss(self, loss: Tensor) -> None:
        """See a loss before it is run backward."""
        self._signals.observe_loss(loss)

    def observe_step(self, context: TaskContext) -> bool:
        """See an optimizer step, and end the task if a change is noticed.

        The model then has the weights of before the change.

        Returns:
            Whether one is.
        """
        signal = self._signal(context)
        if signal is None:
            return False
        clock, trainer = context.clock, context.trainer
        step = clock.steps_trained(trainer)
        began = self._weights.step if self._weights.has_copy else step
        self._go_back(context.pl_module)
        assert clock.visit is not None
        self.changes.append({"visit": clock.visit, "step": step, "began": began, "signal": signal})
        log_scalars(trainer, {"recall/change": float(began)})
        rank_zero_info(
            f"the data has changed, as {signal} at step {step} tells: task {clock.task} ended with "
            f"step {began}"
        )
        clock.end_task()
        return True

    def _signal(self, context: TaskContext) -> str | None:
        """Return the signal of a step that has told a change, or None."""
        loss, states = (self._detectors.get(name) for name in ("loss", "representations"))
        signals = self._signals.take(context.trainer, states is not None and states.holds)
        self._say_unseen(signals)
        changed = [loss is not None and loss.update(signals["loss"]), False]
        if states is not None:
            # hidden states move as well where the model learns fast: then the loss falls
            counts = loss is None or loss.rises
            changed[1] = states.update(signals["representations"], counts)
        if any(changed):
            return "loss" if changed[0] else "representations"
        spare, calm = self._recent.spare, all(each.is_calm for each in self._detectors.values())
        a_step = context.trainer.accumulate_grad_batches
        if self._weights.batches >= (_EVERY * a_step if calm else spare):
            self._weights.copy(context.pl_module, context.clock.steps_trained(context.trainer))
        return None

    def _go_back(self, pl_module: LightningModule) -> None:
        """Give the model the weights of before a change, and forget batches since."""
        if self._weights.has_copy:
            self._recent.go_back(self._weights.batches)
            self._weights.go_back(pl_module)

    def expected_bytes(self, copied: int, batch: Any) -> dict[str, int]:
        """Return what it holds by what it is for, where no batches are accumulated.

        Args:
            copied: Bytes of a copy of the weights.
            batch: A training batch.
        """
        return {"earlier weights": copied, "batches since those": _MOST * batch_bytes(batch)}

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen of the task, and the copy."""
        detectors = self._detectors.items()
        return {
            "values": {name: each.state_dict()["values"] for name, each in detectors},
            **self._signals.distance.state_dict(),
            "changes": self.changes,
            "weights": self._weights.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; what was not watched then begins here."""
        for name, detector in self._detectors.items():
            if name in state_dict["values"]:
                detector.load_state_dict({"values": state_dict["values"][name]})
        self._signals.distance.load_state_dict(dict(state_dict))
        self.changes = list(state_dict["changes"])
        self._weights.load_state_dict(state_dict["weights"])
