"""SLAO: one LoRA for all tasks, whose A is the last task's and whose B an average over tasks."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.optimizer_state import forget
from recall_lightning.callbacks._trainer.own_weights import refuse_own_weights
from recall_lightning.callbacks._trainer.stored_state import check_tensors, count_tensors
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.callbacks.fresh_adapter import FreshAdapter
from recall_lightning.checks import first_of
from recall_lightning.merging.lora.low_rank import LoraFactors
from recall_lightning.merging.lora.pairs import LoraPair, find_lora_pairs
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.naming import named_weights


class SlaoState(ProtectingState):
    """What a checkpoint holds of it."""

    merged: dict[str, Tensor]
    tuned: dict[str, Tensor]


class Slao(ProtectingCallback):
    """Merges LoRA task by task: A ← the last task's, B ← B + λ(i) · (B of task i − B).

    With λ(i) = 1/√i, i counting tasks from 1. The model is the merged adapter from a task's end to
    the next one's start. Each task is trained from what the last one's training came to, before
    its merge, with A replaced by an orthonormal basis of its rows: Aᵀ = QR, A ← Qᵀ, with the signs
    of R's diagonal made positive. Optimizers start anew with both factors, as each task is a
    training of its own.

    Source: SLAO (Qiao & Mahdavi, arXiv 2512.23017): both steps and λ(i). It leaves open what counts
    as a task where the model knows something before the first: here that does, with B = 0, unless
    ``from_first_task`` is False, and λ is 1 in the first as in the paper. What is trained beside
    the adapters is left to training alone.

    Args:
        power: p of λ(i) = i⁻ᵖ, 0 or more; the paper's is 1/2, with 1 B is the mean of all tasks'.
        from_first_task: Whether what the model knows before its first task counts as a task.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For a negative power, a model without plain LoRA adapters, or one
            that adds each task's to its base, a strategy that shards the weights, or an optimizer
            that keeps weights of its own.

    Attributes:
        merged: The adapter's factors as merged at the last task's end, by name.
        tuned: The same as trained, before that merge.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Slao()], logger=False)
    """

    state_form: ClassVar[type] = SlaoState

    def __init__(
        self,
        power: float = 0.5,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not (power >= 0 and math.isfinite(power)):
            raise MisconfigurationException(f"power={power!r} must be a number from 0 on")
        self.power = power
        self.merged: dict[str, Tensor] = {}
        self.tuned: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights, and adapters that end with their task."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be merged; after a resume, bring the factors to their devices."""
        attached: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, FreshAdapter) for each in attached):
            raise MisconfigurationException(
                "Slao merges one adapter over all tasks, and fresh_per_task=True adds each task's "
                "to the base: set it to False"
            )
        pairs = self._pairs(pl_module)
        super().on_train_start(trainer, pl_module)
        refuse_own_weights(trainer.optimizers, self, forgets=True)
        weights = named_weights(pl_module)
        for kept in (self.merged, self.tuned):
            kept.update({n: t.to(weights[n].device) for n, t in kept.items() if n in weights})
        factors = {name for pair in pairs for name in (pair.a, pair.b)}
        others = [n for n, w in weights.items() if isinstance(w, nn.Parameter) and n not in factors]
        if others:
            rank_zero_info(f"Slao leaves {first_of(others)} to training alone: no adapters")

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Go on from what the last task's training came to, from an orthonormal A."""
        pairs, weights = self._pairs(pl_module), named_weights(pl_module)
        if self.visit == 0:  # what there is comes from another run
            self.merged, self.tuned = self._copied(pairs, weights), {}
        known = [pair for pair in pairs if pair.a in self.tuned and pair.b in self.tuned]
        for pair in known:
            with misconfiguration("Slao"):
                factors = pair.factors(self.tuned)
            start = LoraFactors(orthonormal(factors.a), factors.b, factors.scale)
            self._write(pair.tensors(start, weights), weights)
        forget(trainer.optimizers, [weights[n] for pair in known for n in (pair.a, pair.b)])

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Merge what the task's training has come to."""
        pairs, weights = self._pairs(pl_module), named_weights(pl_module)
        if not self.clock.has_learned:
            rank_zero_warn(f"task {task} took no optimizer step: Slao merges nothing of it")
            self._write(self.merged, weights)
            return
        self.tuned = self._copied(pairs, weights)
        assert self.visit is not None
        share = (self.visit + 1 + self.from_first_task) ** -self.power
        if self.visit == 0 and not self.from_first_task:
            share = 1.0
        for pair in pairs:
            with misconfiguration("Slao"):
                now = pair.factors(weights)
                then = pair.factors(self.merged) if pair.b in self.merged else now
            b = then.b.float() + share * (now.b.float() - then.b.float())
            merged = LoraFactors(now.a, b.to(now.b.dtype), now.scale)
            self._write(pair.tensors(merged, weights), weights)
        self.merged = self._copied(pairs, weights)

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check names and shapes of the factors."""
        check_tensors(self.merged, weights, "merged")
        check_tensors(self.tuned, weights, "tuned")

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the factors."""
        own = {"merged": dict(self.merged), "tuned": dict(self.tuned)}
        state = {**super().state_dict(), **own}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.merged, self.tuned = dict(state_dict["merged"]), dict(state_dict["tuned"])

    def _pairs(self, pl_module: LightningModule) -> list[LoraPair]:
        with misconfiguration("Slao"):
            pairs = find_lora_pairs(pl_module)
        if not pairs:
            raise MisconfigurationException(
                f"Slao merges LoRA adapters, and {type(pl_module).__name__} trains none: use "
                "wise_ft or sfa, which average whole weights"
            )
        return pairs

    def _copied(self, pairs: list[LoraPair], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: weights[n].detach().clone() for pair in pairs for n in (pair.a, pair.b)}

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            weights[name].copy_(tensor)


def orthonormal(a: Tensor) -> Tensor:
    """Return an orthonormal basis of the rows of A, (rank, in), that leaves one as it is.

    A of more rows than columns has none and stays as it is.

    Example:
        >>> orthonormal(torch.tensor([[3.0, 0.0, 0.0], [5.0, 2.0, 0.0]])).abs()
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if len(a) > a.shape[1]:
        return a
    q, r = torch.linalg.qr(a.double().T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return (q * signs).T.to(a.dtype)


METHOD = Method(
    "slao",
    "LoRA merged task by task: the last A, an average of B",
    Slao,
    keeps_first="from_first_task",
)
