"""OSF: fine-tuning in the directions that a weight's largest singular values leave free."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.gradients import dense, optimized_weights
from recall_lightning.callbacks._trainer.own_weights import refuse_own_weights
from recall_lightning.callbacks._trainer.stored_state import (
    check_tensors,
    count_tensors,
    damage_is_said,
)
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.checks import FormError, first_of
from recall_lightning.measuring.linear_maps import LinearMap, find_linear_maps
from recall_lightning.merging.lora.names import adapter_tensor
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.growth import new_since
from recall_lightning.weights.naming import named_weights


class OrthogonalSubspaceState(ProtectingState):
    """What a checkpoint holds of it."""

    start: dict[str, Tensor]
    known: dict[str, list[int]]


class OrthogonalSubspace(ProtectingCallback):
    """Keeps every linear map's leading singular directions as they are while a task is trained.

    At a task's start each weight matrix is decomposed, W* = UΣVᵀ, and ``fraction`` of its singular
    values, the largest, are what it knows; U₁ and V₁ are their vectors. The task then moves W in
    the rest alone: W − W* = (I − U₁U₁ᵀ)(W − W*)(I − V₁V₁ᵀ), so that U₁ᵀW and WV₁ stay what they
    were. Gradients are projected so before the optimizer steps, and the weights after it, as Adam
    and weight decay leave the subspace.

    Source: OSF, *Sculpting Subspaces* (arXiv 2504.07097), and PEFT's ``OSFConfig``. There the
    smaller singular values and their vectors are the parameters, their gradients projected to be
    orthogonal to U₁ and V₁, which moves W in the same subspace; here W itself is, so optimizers
    and their state are those of full fine-tuning. The paper gives each layer a fraction of its own,
    by how like its inputs and outputs are; this has one for all, as PEFT does, and decomposes anew
    in each task, as both do. Biases, embeddings and what else is no linear map are left to training
    alone, as are rows by which a head has grown.

    Keeps a copy of the weights and the vectors; the decomposition takes O(out · in · min(out, in)).

    Args:
        fraction: Of each matrix's singular values, what is kept, between 0 and 1.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For a fraction out of range, a model that trains adapters or no
            linear map, a strategy that shards the weights, or an optimizer that keeps weights of
            its own.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[OrthogonalSubspace(fraction=0.5)], logger=False)
    """

    state_form: ClassVar[type] = OrthogonalSubspaceState

    def __init__(
        self,
        fraction: float = 0.5,
        from_first_task: bool = True,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not 0 < fraction < 1:
            raise MisconfigurationException(
                f"fraction={fraction!r} must lie between 0 and 1: the part of the singular values "
                "to keep"
            )
        self.fraction = fraction
        self._start: dict[str, Tensor] = {}  # weights at the task's start
        self._known: dict[str, list[int]] = {}  # shapes of what is kept of them
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what has no matrix to decompose; after a resume, decompose the start anew."""
        maps = self._maps(pl_module)
        super().on_train_start(trainer, pl_module)
        refuse_own_weights(trainer.optimizers, self)
        weights = named_weights(pl_module)
        self._start = {n: t.to(weights[n].device) for n, t in self._start.items() if n in weights}
        self._decompose(maps)
        left = [
            name
            for name, weight in weights.items()
            if isinstance(weight, nn.Parameter) and name not in {one.weight for one in maps}
        ]
        if left:
            rank_zero_info(f"OrthogonalSubspace leaves {first_of(left)} to training alone")

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Decompose the weights."""
        weights, maps = named_weights(pl_module), self._maps(pl_module)
        new = new_since(self.clock.earlier_shapes, weights)
        self._start, self._known = {}, {}
        for one in maps if self.protects else []:
            known = new.get(one.weight, list(weights[one.weight].shape))
            if known is not None:
                self._start[one.weight] = weights[one.weight].detach().clone()
                self._known[one.weight] = list(known)
        self._decompose(maps)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Project the gradients."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        for name, weight in optimized_weights(optimizer, pl_module).items():
            if name in self._vectors and weight.grad is not None:
                gradient = dense(weight.grad)
                corner = self._corner(name)
                gradient[corner] = self._projected(name, gradient[corner])
                weight.grad = gradient

    @torch.no_grad()
    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Project what the weights have moved by."""
        for name, weight in self._live(pl_module):
            corner = self._corner(name)
            start = self._start[name][corner].float()
            moved = self._projected(name, weight[corner].float() - start)
            weight[corner] = (start + moved).to(weight.dtype)

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check names and shapes of the weights at the task's start."""
        check_tensors(self._start, weights, "start")

    def state_dict(self) -> dict[str, Any]:
        """Return the task and the weights at its start."""
        state = {**super().state_dict(), "start": dict(self._start), "known": dict(self._known)}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self._start, self._known = dict(state_dict["start"]), dict(state_dict["known"])
        with damage_is_said(type(self).__name__):
            if self._start.keys() != self._known.keys():
                raise FormError("start and known are not of the same weights")

    def _maps(self, pl_module: LightningModule) -> list[LinearMap]:
        adapter = adapter_tensor(named_weights(pl_module))
        if adapter is not None:
            raise MisconfigurationException(
                f"OrthogonalSubspace is a way of full fine-tuning, and {adapter} is an adapter's: "
                "train the model's own weights, without one"
            )
        found, _ = find_linear_maps(pl_module)
        maps = [one for one in found if one.kind != "embedding"]
        if not maps:
            raise MisconfigurationException(
                f"OrthogonalSubspace found no linear map that {type(pl_module).__name__} trains: "
                "it decomposes the weights of nn.Linear and of convolutions"
            )
        return maps

    def _decompose(self, maps: list[LinearMap]) -> None:
        self._vectors = {}
        for one in maps:
            if one.weight in self._start:
                corner = self._start[one.weight][self._corner(one.weight)]
                self._vectors[one.weight] = leading(corner.flatten(1), self.fraction)

    def _corner(self, name: str) -> tuple[slice, ...]:
        return tuple(map(slice, self._known[name]))

    def _live(self, pl_module: LightningModule) -> Iterator[tuple[str, Tensor]]:
        weights = named_weights(pl_module)
        return ((name, weights[name]) for name in self._vectors if name in weights)

    def _projected(self, name: str, difference: Tensor) -> Tensor:
        left, right = self._vectors[name]
        matrix = difference.flatten(1).to(left.dtype)
        matrix = matrix - left @ (left.T @ matrix)
        matrix = matrix - (matrix @ right) @ right.T
        return matrix.to(difference.dtype).reshape(difference.shape)


def leading(matrix: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the vectors of the largest singular values of a matrix, float32, at least one.

    Args:
        matrix: (out, in).
        fraction: Of min(out, in), rounded: how many.

    Returns:
        Left ones in columns, (out, number), and right ones, (in, number).

    Example:
        >>> left, right = leading(torch.diag(torch.tensor([1.0, 3.0])), 0.5)
        >>> left.abs(), right.abs()
        (tensor([[0.],
                [1.]]), tensor([[0.],
                [1.]]))
    """
    number = max(1, round(fraction * min(matrix.shape)))
    left, _, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    return left[:, :number].contiguous(), right[:number].T.contiguous()


METHOD = Method(
    "osf",
    "full fine-tuning beside the leading singular directions",
    OrthogonalSubspace,
    keeps_first="from_first_task",
)
