"""The Kronecker-factored Laplace approximation of earlier tasks as a penalty in training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Distribution

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.checks import check_count, first_of
from recall_lightning.measuring.curvature import kronecker_factors
from recall_lightning.measuring.input_moments import empty_moments
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import FullMoments
from recall_lightning.measuring.predictions import Predictions
from recall_lightning.measuring.view import ModelView
from recall_lightning.methods.map_curvature import KroneckerCurvature, MapCurvature
from recall_lightning.methods.map_penalty import MapPenalty, Measured
from recall_lightning.methods.method import Method
from recall_lightning.recall.process_means import mean_over_processes, mean_where_all_have
from recall_lightning.weights.naming import named_weights


class KfacPenalty(MapPenalty):
    """Adds strength/2 · Σ tr(G (W − W*) A (W − W*)ᵀ) to the loss, over a model's linear maps.

    A = E[xxᵀ] are the moments of a map's inputs, G = E[ggᵀ] those of the gradients at its outputs
    (K-FAC, Martens & Grosse, arXiv 1503.05671). Sources: the online Laplace approximation of Ritter
    et al. (arXiv 1805.07810), whose penalty this is; for adapters W is their update ΔW, as in TAK
    (arXiv 2602.17385). Both factors are summed over tasks, each task counting alike, and their
    product divided by the number of tasks: one product stands for the sum of products, so memory
    and time do not grow with tasks.

    Keeps a matrix of each map's width squared on both sides; in a step an adapter's update costs
    the width squared times the rank. More:
    :class:`~recall_lightning.methods.map_penalty.MapPenalty`.

    Args:
        strength: λ, what the penalty is multiplied by, 0 or more; 1 is the approximation itself.
        batches: On how many of a task's last batches A and G are measured, per process.
        width: Maps wider than this, on either side, are left to training alone, with a warning.
        decay: What earlier tasks' sums are multiplied by at a task's end, in [0, 1].
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
        >>> trainer = Trainer(callbacks=[KfacPenalty(strength=10.0)], logger=False)
    """

    def __init__(
        self,
        strength: float = 10.0,
        batches: int = 32,
        width: int = 4096,
        decay: float = 1.0,
        from_first_task: bool = True,
        seed: int = 0,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(strength, batches, decay, from_first_task, seed, predictions, task_epochs)
        with misconfiguration():
            check_count("width", width)
        self.width = width

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Say in the first task which maps are too wide."""
        super().on_task_start(trainer, pl_module, task)
        wide = self._too_wide(named_weights(pl_module))
        if self.visit == 0 and wide:
            rank_zero_warn(
                f"KfacPenalty does not protect {first_of(wide)}: wider than width={self.width}"
            )

    def measure(
        self, module: nn.Module, maps: Sequence[LinearMap], batches: Sequence[Any], view: ModelView
    ) -> Measured:
        """Measure both factors, in nats a prediction."""
        wide = self._too_wide(named_weights(module))
        maps = [one for one in maps if one.name not in wide]
        factors = kronecker_factors(
            module,
            maps,
            batches,
            view,
            full_width=self.width,
            seed=self.seed,
            predictions=self._predictions,
        )
        own: dict[str, MapCurvature] = {
            name: KroneckerCurvature(factors.inputs[name], outputs)
            for name, outputs in factors.outputs.items()
            if name in factors.inputs
        }
        return own, factors.unknown

    def over_processes(
        self, trainer: Trainer, maps: Sequence[LinearMap], measured: dict[str, MapCurvature]
    ) -> dict[str, MapCurvature]:
        """Return the products of the factors' means over the processes."""
        device = trainer.strategy.root_device
        empty = {one.name: empty_moments(one, device, self.width) for one in maps}
        own = {n: one for n, one in measured.items() if isinstance(one, KroneckerCurvature)}
        inputs = mean_over_processes(trainer, {n: one.inputs for n, one in own.items()}, empty)
        outputs = {n: o.outputs for n, o in own.items() if isinstance(o.outputs, FullMoments)}
        means = mean_where_all_have(trainer, outputs, list(empty), torch.device(device))
        return {n: KroneckerCurvature(inputs[n], mean) for n, mean in means.items()}

    def _too_wide(self, weights: Mapping[str, Tensor]) -> list[str]:
        present = {name: one for name, one in self._maps.items() if one.weight in weights}
        return [n for n, one in present.items() if self._is_too_wide(one, weights)]

    def _is_too_wide(self, linear_map: LinearMap, weights: Mapping[str, Tensor]) -> bool:
        """Tell whether a side is; the rows of an embedding, or of bags, may be any number."""
        is_table = linear_map.kind in ("embedding", "bag")
        inputs = 0 if is_table else linear_map.inputs
        return max(inputs, linear_map.outputs(weights)) > self.width


METHOD = Method(
    "kfac_penalty",
    "online Laplace: a Kronecker-factored penalty",
    KfacPenalty,
    keeps_first="from_first_task",
)
