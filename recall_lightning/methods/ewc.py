"""Elastic weight consolidation: a pull that is stronger where earlier tasks were sensitive."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.stored_state import (
    check_tensors,
    count_tensors,
    damage_is_said,
)
from recall_lightning.checks import check_count
from recall_lightning.methods.method import Method
from recall_lightning.methods.penalty import PenaltyState, QuadraticPenalty
from recall_lightning.recall.squared_gradients import SquaredGradients, SquaredGradientsState
from recall_lightning.weights.growth import has_grown, padded
from recall_lightning.weights.naming import named_weights


class ConsolidationState(PenaltyState):
    """What a checkpoint holds of it."""

    fisher: dict[str, Tensor]
    squared_gradients: SquaredGradientsState


class ElasticWeightConsolidation(QuadraticPenalty):
    """Online EWC: adds strength/2 · Σ F · (θ − θ*)² to the loss.

    θ* is the weights at the end of the last task, the only anchor; F grows at every task's end by
    F ← decay · F + F_task. Sources: EWC (Kirkpatrick et al. 2017, arXiv 1612.00796), and the
    running F of Progress & Compress (Schwarz et al. 2018, arXiv 1805.06370).

    F_task is the empirical Fisher matrix's diagonal **of batch means**: the mean over the task's
    last ``fisher_steps`` optimizer steps of the squared gradient of the loss as trained, which
    averages over the batch; it is not multiplied by the batch size. Against the Fisher matrix of
    single samples, (∂ log p / ∂θ)², it is smaller by about the number of samples a step, so
    ``strength`` is about λ · (samples a step) for the λ of a paper that squares sample by sample.
    How and when the penalty is added:
    :class:`~recall_lightning.methods.penalty.QuadraticPenalty`.

    Note:
        F needs data, and before the first task there is none: the first task always goes
        unprotected, with a warning where ``from_first_task`` asks for more.

    Args:
        strength: λ, what the penalty is multiplied by, 0 or more; see above for its unit.
        fisher_steps: Optimizer steps at a task's end that F_task is averaged over.
        decay: What earlier tasks' F is multiplied by at a task's end (γ), in [0, 1]; with 1 all
            tasks count alike.
        from_first_task: Whether what the model knows before its first task is worth keeping. EWC
            cannot keep it, and says so once; False keeps silent.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range or a strategy that shards the
            weights.

    Attributes:
        fisher: F by canonical weight name, float32; empty before the first task's end.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ElasticWeightConsolidation(strength=1e4)], logger=False)
    """

    decides_at_start = False
    state_form: ClassVar[type] = ConsolidationState

    def __init__(
        self,
        strength: float = 10000.0,
        fisher_steps: int = 50,
        decay: float = 1.0,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(strength, from_first_task, task_epochs)
        if not 0 <= decay <= 1:
            raise MisconfigurationException(f"decay={decay!r} must lie in [0, 1]")
        with misconfiguration():
            check_count("fisher_steps", fisher_steps)
        self.decay = decay
        self.fisher: dict[str, Tensor] = {}
        self._squared_gradients = SquaredGradients(fisher_steps)

    @property
    def protects(self) -> bool:
        """Whether a task before this one left its F."""
        return bool(self.fisher)

    def importance(self, name: str) -> Tensor | float:
        """Return F of a weight; 0 where there is none."""
        return self.fisher.get(name, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring F to the device."""
        super().on_train_start(trainer, pl_module)
        self.fisher = {
            name: self.fisher[name].to(weight.device)
            for name, weight in named_weights(pl_module).items()
            if name in self.fisher
        }

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Take the anchor, and start F_task."""
        if self.visit == 0:  # what there is comes from another run
            self.fisher = {}
            if self.from_first_task:
                rank_zero_warn(
                    "ElasticWeightConsolidation does not protect what the model knows before its "
                    "first task: there is no data to take the Fisher matrix from; "
                    "from_first_task=False accepts that"
                )
        super().on_task_start(trainer, pl_module, task)
        self._drop_what_no_longer_fits()
        self._squared_gradients.start_task()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Square the task's own gradient, then add the penalty's."""
        self._squared_gradients.observe(self.clock, optimizer, pl_module)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    @torch.no_grad()
    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Add F_task to F."""
        if not self.clock.has_learned or not self._squared_gradients.count:
            why = f"stopped before its last {self._squared_gradients.steps} steps"
            rank_zero_warn(
                f"task {task} {why if self.clock.has_learned else 'took no optimizer step'}, so "
                "ElasticWeightConsolidation has no Fisher matrix of it and will not protect it"
            )
            return
        earlier = {name: self.decay * fisher for name, fisher in self.fisher.items()}
        of_task = self._squared_gradients.mean()
        self.fisher = earlier | {n: earlier.get(n, 0.0) + f for n, f in of_task.items()}
        self._squared_gradients.start_task()

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check the names and shapes of the anchor, F and what there is of F_task."""
        super().check_fits(weights)
        known = {name: fisher for name, fisher in self.fisher.items() if name in weights}
        check_tensors(known, weights, "fisher")
        check_tensors(self._squared_gradients.mean(), weights, "squared_gradients.mean")

    def state_dict(self) -> dict[str, Any]:
        """Return the task, the anchor, F and what there is of F_task."""
        squared_gradients = self._squared_gradients.state_dict()
        own = {"fisher": dict(self.fisher), "squared_gradients": squared_gradients}
        state = {**super().state_dict(), **own}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.fisher = dict(state_dict["fisher"])
        with damage_is_said(type(self).__name__):
            self._squared_gradients.load_state_dict(state_dict["squared_gradients"])

    def _drop_what_no_longer_fits(self) -> None:
        if self.anchor is None:
            return
        shapes = {name: weight.shape for name, weight in self.anchor.items()}
        for name, fisher in self.fisher.items():  # nothing depended on what has grown
            if name in shapes and has_grown(fisher.shape, shapes[name]):
                self.fisher[name] = padded(fisher, shapes[name])
        gone = [name for name, fisher in self.fisher.items() if shapes.get(name) != fisher.shape]
        if gone:
            rank_zero_warn(
                f"ElasticWeightConsolidation no longer protects {', '.join(gone[:3])}"
                f"{' and more' if len(gone) > 3 else ''}: frozen, gone or of another shape since "
                "the last task"
            )
            self.fisher = {n: f for n, f in self.fisher.items() if n not in gone}


METHOD = Method(
    "ewc",
    "online elastic weight consolidation",
    ElasticWeightConsolidation,
    keeps_first="from_first_task",
)
