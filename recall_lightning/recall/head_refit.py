"""The last layer of a classifier, fitted anew after each merge that is tried at a task's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.merging.head import Predicted, fitted_head, spread
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.fitted_heads import HeadsState, write_head_again
from recall_lightning.recall.plasticity import COMPARED_BATCHES
from recall_lightning.recall.prepared_merge import PreparedMerge
from recall_lightning.recall.process_means import averaged, sum_over_processes
from recall_lightning.recall.statistics.head_inputs import HeadInputs
from recall_lightning.weights.sharding import write_into

DRAWN = 2048  # inputs of earlier tasks
SPREAD = 1024  # that are put in the place of the task's own


class HeadRefit:
    """Fits the last layer after a merge has moved what is before it.

    See :func:`~recall_lightning.merging.head.fitted_head`. The old is what the newest snapshot's
    layer predicts of inputs as :class:`HeadInputs` has them, every earlier task counting once; the
    new is what the live model predicts of the task's last batches.

    Args:
        context: The task, its live weights as they were trained.
        inputs: What is known of the layer's inputs in earlier tasks.
        head: The layer.
        prepared: The merges that are tried.
        batches: The task's last, on which the model is run.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        context: TaskContext,
        inputs: HeadInputs,
        head: LinearMap,
        prepared: PreparedMerge,
        batches: Sequence[Any],
        seed: int,
    ) -> None:
        self._context, self._inputs, self._head = context, inputs, head
        self._batches = batches
        self._live = {name: prepared.live[name] for name in _names(head)}
        self._seed, self._earlier = seed, prepared.inputs[-1].earlier_tasks
        _, logits = inputs.given(context, head, batches)
        self._now = logits.softmax(dim=1)
        snapshot = [prepared.snapshots[-1][n].to(w).float() for n, w in self._live.items()]
        self._then = inputs.predicted(
            DRAWN, self._drawn_with(), lambda given: functional.linear(given, *snapshot)
        )
        known = prepared.new.get(head.weight)
        if known is not None:  # rows of classes that have come in this task
            self._then.probabilities[:, known[0] :] = 0
        self._fitted: dict[float, dict[str, Tensor]] = {}

    @classmethod
    def of(
        cls,
        context: TaskContext,
        inputs: HeadInputs | None,
        prepared: PreparedMerge,
        batches: Sequence[Any],
        seed: int,
    ) -> HeadRefit | None:
        """Begin, where earlier tasks are known and the layer is trained; else return None."""
        if inputs is None or not inputs.tasks:
            return None
        head = inputs.head(context)
        if head is None or not inputs.fit(head) or prepared.left & _names(head).keys():
            return None
        merged = prepared.snapshots[-1].keys() & prepared.live.keys()
        if not _names(head).keys() <= merged:
            return None
        refit = cls(context, inputs, head, prepared, batches, seed)
        trainer = context.trainer
        counted = sum_over_processes(trainer, float(len(refit._now) > 0)) == trainer.world_size
        return refit if counted else None

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self._head.modules[0]

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
        trainer = self._context.trainer
        given, _ = self._inputs.given(self._context, self._head, self._batches)
        new = spread(Predicted(given, self._now), SPREAD, self._drawn_with())
        weights = list(self._live.values())
        fitted = fitted_head(
            weights[0],
            weights[1] if len(weights) > 1 else None,
            self._then,
            new,
            keep * self._earlier,
            lambda own: averaged(trainer, own),
        )
        found = [each for each in fitted if each is not None]
        self._fitted[keep] = dict(zip(self._live, found, strict=True))
        write_into(self._live, self._fitted[keep])

    def _drawn_with(self) -> torch.Generator:
        """The same draws for every merge, so that only what differs between them tells."""
        return torch.Generator().manual_seed(self._seed)

    def state_dict(self) -> HeadsState:
        """Return the layers that were fitted, by how much the old counted."""
        keeps = sorted(self._fitted)
        each = [self._fitted[keep] for keep in keeps]
        weights = {name: torch.stack([fitted[name] for fitted in each]) for name in self._live}
        return {"keeps": keeps, "weights": weights}


def fitted_to(batches: Sequence[Any]) -> Sequence[Any]:
    """Return those of a task's last batches that the layer is fitted to.

    They are others than those whose loss tells what a merge costs, if there are: a few inputs that
    a layer was fitted to say little of what it makes of the rest.

    >>> list(fitted_to(range(12))), list(fitted_to(range(3)))
    ([4, 5, 6, 7], [0, 1, 2])
    """
    return (batches[:-COMPARED_BATCHES] or batches)[-COMPARED_BATCHES:]


def _names(head: LinearMap) -> dict[str, None]:
    """The names of weight and bias, in this order."""
    return dict.fromkeys(name for name in (head.weight, head.bias) if name is not None)
