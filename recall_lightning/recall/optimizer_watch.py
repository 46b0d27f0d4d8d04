"""Whether merges hold: what optimizers keep of weights, and what their steps make of merges."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.own_weights import (
    refuse_copies_of_weights,
    refuse_own_weights,
)
from recall_lightning.recall.undone_merges import UndoneMerges
from recall_lightning.weights.naming import named_weights


class OptimizerWatch:
    """Refuses optimizers that keep weights of their own and overwrite merged ones with them.

    One is tried before a fit, searched after its first step, and what merges wrote is looked at
    after the steps that follow.

    Args:
        forgets: Whether the optimizers forget their state of merged weights.
    """

    def __init__(self, forgets: bool) -> None:
        self._forgets = forgets
        self._undone: UndoneMerges | None = None

    def start_fit(self, optimizers: Sequence[Optimizer], writer: object) -> None:
        """Try a fit's optimizers on a small weight.

        Raises:
            MisconfigurationException: Naming the one that undoes what is written.
        """
        self._undone = None
        refuse_own_weights(optimizers, writer, self._forgets)

    def observe_step(
        self,
        optimizers: Sequence[Optimizer],
        pl_module: LightningModule,
        writer: object,
        merge_follows: bool,
    ) -> None:
        """Look at what a step has made of the weights, and after the first at what is kept.

        Args:
            optimizers: The fit's.
            pl_module: The module.
            writer: Who merges, for messages.
            merge_follows: Whether a merge may come after this step.

        Raises:
            MisconfigurationException: Naming the optimizer that keeps copies.
            ValueError: If two merges were undone; of the first a warning tells.
        """
        if self._undone is None:
            live = named_weights(pl_module)
            refuse_copies_of_weights(optimizers, live, writer, self._forgets)
            self._undone = UndoneMerges(live)
        self._undone.observe_step(merge_follows)

    def observe_merge(self) -> None:
        """See the weights after a merge."""
        if self._undone is not None:
            self._undone.observe_merge()
