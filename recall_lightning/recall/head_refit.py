"""The last layer of a classifier, fitted anew after each merge that is tried at a task's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.view import ModelView
from recall_lightning.merging.head import Predicted, fitted_head, spread
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.fitted_heads import HeadsState, write_head_again
from recall_lightning.recall.plasticity import COMPARED_BATCHES, compared_of
from recall_lightning.recall.prepared_merge import PreparedMerge
from recall_lightning.recall.process_means import averaged, sum_over_processes
from recall_lightning.recall.statistics.head_inputs import HeadInputs, rows_of_finite
from recall_lightning.recall.statistics.recent_batches import last_with
from recall_lightning.weights.sharding import write_into

_FITTED = 64  # labels at least, of the task's last batches
_ENOUGH = 4  # inputs of a class
_MOST = 0.5  # of what is predicted of the new


class HeadRefit:
    """Fits the last layer after a merge has moved what is before it.

    See :func:`~recall_lightning.merging.head.fitted_head`. The old is what the newest snapshot's
    layer predicts of inputs as :class:`HeadInputs` has them, or in a task of new classes what was
    predicted at their task's end, as a snapshot's errors add up; every earlier task counts once.
    They lie where the merge takes them, see
    :class:`~recall_lightning.merging.moved_inputs.MovedInputs`. The new is what the live model
    predicts of the task's last batches.

    Args:
        context: The task, its live weights as they were trained.
        inputs: What is known of the layer's inputs in earlier tasks.
        head: The layer.
        prepared: The merges that are tried.
        batches: The task's last, on which the model is run.

    Attributes:
        has_grown: Whether the layer has rows that are new in the task.
        is_of_new_classes: Whether most of what is predicted of the task's last batches, in all
            processes, is of no earlier task.
    """

    def __init__(
        self,
        context: TaskContext,
        inputs: HeadInputs,
        head: LinearMap,
        prepared: PreparedMerge,
        batches: Sequence[Any],
    ) -> None:
        self._context, self._inputs, self._head = context, inputs, head
        self._batches = batches
        self._live = {name: prepared.live[name] for name in _names(head)}
        self._earlier = prepared.inputs[-1].earlier_tasks
        drawn = draws(head)
        given, logits = inputs.given(context, head, batches)
        before = inputs.given_before(context, head, batches)
        finite = rows_of_finite(given, logits, before)
        chosen = torch.randperm(len(finite), generator=inputs.generator())[: drawn // 2]
        self._rows = finite[chosen.to(finite.device)]
        self._now = logits[self._rows].softmax(dim=1)
        snapshot = [prepared.snapshots[-1][n].to(w).float() for n, w in self._live.items()]
        new = prepared.new.get(head.weight)
        self.has_grown = new is not None

        def then(given: Tensor) -> Tensor:
            logits = functional.linear(given, *snapshot)
            if new is not None:  # rows of classes that have come in this task
                logits[:, new[0] :] = -torch.inf
            return logits

        classes = self._now.argmax(dim=1)
        trainer, share = context.trainer, inputs.share_of_new(classes)
        self.is_of_new_classes = sum_over_processes(trainer, share) > _MOST * trainer.world_size
        self._then = inputs.predicted(drawn, inputs.generator(), then, self.is_of_new_classes)
        self._moved = inputs.moved(self._then.inputs, before[self._rows], classes)
        self._fitted: dict[float, dict[str, Tensor]] = {}

    @classmethod
    def of(
        cls,
        context: TaskContext,
        inputs: HeadInputs | None,
        prepared: PreparedMerge,
        batches: Sequence[Any],
    ) -> HeadRefit | None:
        """Begin, where earlier tasks are known and the layer is trained; else return None."""
        if inputs is None or not inputs.tasks or not inputs.covers_all:
            return None
        head = inputs.head(context)
        if head is None or prepared.left & _names(head).keys():
            return None
        merged = prepared.snapshots[-1].keys() & prepared.live.keys()
        if not (_names(head).keys() <= merged and inputs.fit(head, head.outputs(prepared.live))):
            return None
        refit = cls(context, inputs, head, prepared, batches)
        trainer = context.trainer
        counted = sum_over_processes(trainer, float(len(refit._now) > 0)) == trainer.world_size
        return refit if counted else None

    @property
    def counts_tasks(self) -> bool:
        """Whether there is enough of the new for each earlier task to count, whatever that costs.

        Enough are four inputs, on average, of each class that the live model predicts of them.
        """
        classes = len(self._now.argmax(dim=1).unique())
        trainer = self._context.trainer
        enough = float(len(self._now) >= _ENOUGH * classes)
        return sum_over_processes(trainer, enough) == trainer.world_size

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self._head.modules[0]

    @property
    def is_fitted(self) -> bool:
        """Whether it has been."""
        return bool(self._fitted)

    def write(self, keep: float, chosen: bool) -> None:
        """Fit the layer to the weights before it as they are now.

        Args:
            keep: How many times each earlier task counts, as in the merge.
            chosen: Whether the merge lies among those that it was fitted after: then the layer lies
                between theirs, as it does where the merge is made again without the batches.
        """
        if chosen:
            write_head_again(self._live, self.state_dict(), keep)
            return
        self._inputs.tell_that()
        trainer = self._context.trainer
        given = self._inputs.given(self._context, self._head, self._batches)[0][self._rows]
        there = averaged(trainer, self._moved.by(given))
        old = Predicted(there, self._then.probabilities)
        new = spread(Predicted(given, self._now), draws(self._head) // 2, self._inputs.generator())
        weights = list(self._live.values())
        fitted = fitted_head(
            weights[0],
            weights[1] if len(weights) > 1 else None,
            old,
            new,
            keep * self._earlier,
            lambda own: averaged(trainer, own),
        )
        found = [each for each in fitted if each is not None]
        self._fitted[keep] = dict(zip(self._live, found, strict=True))
        write_into(self._live, self._fitted[keep])

    def state_dict(self) -> HeadsState:
        """Return the layers that were fitted, by how much the old counted."""
        keeps = sorted(self._fitted)
        each = [self._fitted[keep] for keep in keeps]
        weights = {name: torch.stack([fitted[name] for fitted in each]) for name in self._live}
        return {"keeps": keeps, "weights": weights}


def draws(head: LinearMap) -> int:
    """Return how many inputs of earlier tasks are drawn, and half as many of the current one's.

    A narrow layer takes fewer: eight for each entry of its inputs.
    """
    return min(max(8 * head.inputs, 512), 2048)


def fitted_to(batches: Sequence[Any], view: ModelView) -> Sequence[Any]:
    """Return those of a task's last batches that the layer is fitted to.

    They are others than those whose loss tells what a merge costs, if there are: a few inputs that
    a layer was fitted to say little of what it makes of the rest. They are four, or as many as hold
    64 labels.

    Example:
        >>> batches = [(torch.zeros(size, 3), torch.arange(size)) for size in (8,) * 20]
        >>> len(fitted_to(batches, ModelView())), len(fitted_to(batches[:3], ModelView()))
        (8, 3)
    """
    others = list(batches[: -len(compared_of(batches, view))] or batches)
    return others[-max(COMPARED_BATCHES, len(last_with(others, _FITTED, view))) :]


def _names(head: LinearMap) -> dict[str, None]:
    """The names of weight and bias, in this order."""
    return dict.fromkeys(name for name in (head.weight, head.bias) if name is not None)
