"""EWC-LoRA: elastic weight consolidation of the updates that adapters stand for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributions import Distribution

from recall_lightning.measuring.fisher_diagonal import fisher_diagonal
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.predictions import Predictions
from recall_lightning.measuring.view import ModelView
from recall_lightning.methods.map_curvature import DiagonalCurvature, MapCurvature
from recall_lightning.methods.map_penalty import MapPenalty, Measured
from recall_lightning.methods.method import Method


class UpdateConsolidation(MapPenalty):
    """EWC of ΔW = scale · BA: adds strength/2 · Σ F · (ΔW − ΔW*)² to the loss.

    F is the diagonal of the Fisher matrix of the weight that ΔW is added to, E[(∂ log p / ∂W)²],
    not those of A and B, which say nothing of their product. Source: EWC-LoRA (arXiv 2602.17559),
    which keeps one adapter for all tasks and F over the whole weight, summed over tasks. Of ours
    are: F of drawn labels, sample by sample
    (:func:`~recall_lightning.measuring.fisher_diagonal.fisher_diagonal`); F of the model before its
    first task, from sequences that it writes; and that other trained linear maps, such as those of
    ``modules_to_save``, are penalised in the same way. Of a model without an adapter it is EWC of
    all its linear maps, with the Fisher matrix of single samples.

    Keeps F as large as the adapted weights, float32, and forms ΔW − ΔW* in every step. More:
    :class:`~recall_lightning.methods.map_penalty.MapPenalty`.

    Args:
        strength: λ, what the penalty is multiplied by, 0 or more.
        batches: On how many of a task's last batches F is measured, per process.
        decay: What earlier tasks' F is multiplied by at a task's end, in [0, 1].
        from_first_task: Whether what the model knows before its first task is worth keeping. Of
            what is no causal language model it cannot be kept, which is said once.
        seed: Of drawn labels and of sequences that the model writes.
        predictions: What the model predicts: ``"classes"``, ``"values"``, ``"binary"``, an object
            or a function as in :class:`~recall_lightning.RecallCallback`, or ``"auto"``: what a
            batch's targets tell.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range, a strategy that shards the
            weights, or an adapter that is no plain LoRA.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UpdateConsolidation(strength=30.0)], logger=False)
    """

    def __init__(
        self,
        strength: float = 30.0,
        batches: int = 32,
        decay: float = 1.0,
        from_first_task: bool = True,
        seed: int = 0,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(strength, batches, decay, from_first_task, seed, predictions, task_epochs)

    def measure(
        self, module: nn.Module, maps: Sequence[LinearMap], batches: Sequence[Any], view: ModelView
    ) -> Measured:
        """Measure the diagonals."""
        found = fisher_diagonal(module, maps, batches, view, self.seed, self._predictions)
        diagonals: dict[str, MapCurvature] = {}
        diagonals |= {name: DiagonalCurvature(own) for name, own in found.diagonal.items()}
        return diagonals, found.unknown

    def over_processes(
        self, trainer: Trainer, maps: Sequence[LinearMap], measured: dict[str, MapCurvature]
    ) -> dict[str, MapCurvature]:
        """Return the mean over the processes, where one has measured none that of the others."""
        names = [one.name for one in maps]
        root = trainer.strategy.root_device
        own = torch.tensor([float(name in measured) for name in names], device=root)
        everywhere = trainer.strategy.reduce(own, reduce_op="mean")
        assert isinstance(everywhere, Tensor)
        together: dict[str, MapCurvature] = {}
        for name, share in zip(names, everywhere.tolist(), strict=True):
            if share == 1:
                one = measured[name]
                assert isinstance(one, DiagonalCurvature)
                mean = trainer.strategy.reduce(one.diagonal.clone(), reduce_op="mean")
                assert isinstance(mean, Tensor)
                together[name] = DiagonalCurvature(mean)
        return together


METHOD = Method(
    "ewc_lora",
    "EWC of adapters' updates ΔW = BA",
    UpdateConsolidation,
    keeps_first="from_first_task",
)
