"""The diagonal of the Fisher information of linear maps, sample by sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.batches import batch_size
from recall_lightning.measuring.curvature import feature_axis, sampled_loss
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.guarded_parameters import no_gradients_left
from recall_lightning.measuring.input_moments import hooked, rows_of
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.predictions import FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of


@dataclass(frozen=True)
class FisherDiagonal:
    """The diagonal of the Fisher information of linear maps' matrices.

    Attributes:
        diagonal: Weight name to it, float32 in the shape of the map's matrix: (out, width), of an
            embedding (rows, dimension).
        unknown: Why nothing is known, where the batches told nothing of the predictions.
    """

    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    unknown: str | None = None


def fisher_diagonal(
    module: nn.Module,
    maps: Sequence[LinearMap],
    batches: Sequence[Any],
    view: ModelView | ProbeForward | None = None,
    seed: int = 0,
    predictions: FoundPredictions | str | Predictions | Callable[[Tensor], Distribution] = "auto",
) -> FisherDiagonal:
    """Run a model forward and backward over batches and square the gradients of its linear maps.

    A map's gradient is Σ gxᵀ, over a sample's tokens or patches, of its inputs x and the gradients
    g at its outputs, so that it is that of the whole weight where an adapter is trained in its
    stead. Gradients are those of −log p of labels drawn from the model's own predictions, squared
    sample by sample: E[(∂ log p / ∂W)²] (Kirkpatrick et al., arXiv 1612.00796), a mean over
    predictions. Where a layer's first axis does not count samples, a whole batch is squared at
    once, which has the same mean and more noise: drawn labels are independent. The model's mode,
    gradients and every random state are as before.

    Args:
        module: The model.
        maps: The maps. One whose ``modules`` are layers with an adapter is of their whole update.
        batches: Batches on the model's device, targets included.
        view: How the module is run, and where its logits and targets are; by default found.
        seed: Of the drawn labels.
        predictions: The kind of the model's predictions, ``"auto"``, or what was found before.

    Raises:
        ValueError: If the predictions are no kind, or of one that the batches contradict.

    Example:
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> net = nn.Linear(2, 1, bias=False)
        >>> batch = (torch.tensor([[1.0, 3.0]]).expand(50, 2), torch.rand(50, 1))
        >>> maps, _ = find_linear_maps(net)
        >>> found = fisher_diagonal(net, maps, [batch] * 99, predictions="values")
        >>> found.diagonal["weight"].round().tolist()  # of real numbers: E[gg] is 1
        [[1.0, 9.0]]
    """
    view, found = view_of(module, view), predictions
    if not isinstance(found, FoundPredictions):
        found = FoundPredictions(found)
    squares, unknown, count = _Squares(maps), None, 0
    with (
        undisturbed(module),
        no_gradients_left(module),  # of a backward inside the backward
        squares.gathered_from(module),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        for batch in batches:
            squares.samples = batch_size(batch)
            output = view.forward(module, copy.copy(batch))  # a forward may pop what it takes
            told = sampled_loss(view, found, output, batch)
            if isinstance(told, str):
                unknown = unknown or told
                squares.forget()
                continue
            squares.add(told[0])
            count += told[1]
    mean = {name: total / max(count, 1) for name, total in squares.sums.items()}
    return FisherDiagonal(mean, unknown)


class _Squares:
    """Sums of squared gradients of maps."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self.maps = maps
        self.samples = 0
        self.sums: dict[str, Tensor] = {}
        self._computed: list[tuple[LinearMap, nn.Module, Tensor, Tensor]] = []

    def gathered_from(self, module: nn.Module) -> AbstractContextManager[None]:
        def register(child: nn.Module, linear_map: LinearMap) -> RemovableHandle:
            def hook(
                child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
            ) -> Tensor | None:
                given = args[0] if args else next(iter(kwargs.values()))
                if not (isinstance(output, Tensor) and output.requires_grad):
                    return None
                self._computed.append((linear_map, child, given.detach(), output))
                return output.clone()  # what is computed in place must not change the one kept

            return child.register_forward_hook(hook, with_kwargs=True)

        return hooked(module, self.maps, register)

    def forget(self) -> None:
        self._computed = []

    def add(self, loss: Tensor) -> None:
        """Add the squared gradients of a loss, a sum over independent samples."""
        computed, self._computed = self._computed, []
        if not computed:
            return
        outputs = [output for *_, output in computed]
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
        self._computed = []  # what checkpointed layers computed meanwhile
        calls: dict[str, list[tuple[LinearMap, Tensor, Tensor]]] = {}
        for (linear_map, child, given, _), gradient in zip(computed, gradients, strict=True):
            if gradient is not None:
                pair = self._by_sample(linear_map, child, given, gradient)
                calls.setdefault(linear_map.weight, []).append((linear_map, *pair))
        for name, parts in calls.items():
            linear_map = parts[0][0]
            groups = {len(inputs) for _, inputs, _ in parts}
            if len(groups) > 1:  # a weight of several uses that part samples differently
                parts = [(m, i.flatten(0, 1)[None], g.flatten(0, 1)[None]) for m, i, g in parts]
            inputs = torch.cat([part[1] for part in parts], 1)
            gradients_ = torch.cat([part[2] for part in parts], 1)
            self._square(name, linear_map, inputs, gradients_)

    def _by_sample(
        self, linear_map: LinearMap, child: nn.Module, given: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and gradients as (samples, tokens, …), or of one sample for all."""
        axis = feature_axis(child)
        gradient = gradient.movedim(axis, -1).float()
        samples = len(gradient) if len(gradient) == self.samples and gradient.dim() > 1 else 1
        rows = rows_of(linear_map, child, given)
        rows = rows if linear_map.kind == "embedding" else rows.float()
        return (
            rows.reshape(samples, -1, *rows.shape[1:]),
            gradient.reshape(samples, -1, gradient.shape[-1]),
        )

    def _square(self, name: str, linear_map: LinearMap, inputs: Tensor, gradients: Tensor) -> None:
        outputs = gradients.shape[-1]
        embedding = linear_map.kind == "embedding"
        shape = (linear_map.width, outputs) if embedding else (outputs, linear_map.width)
        total = self.sums.setdefault(name, gradients.new_zeros(shape))
        if embedding:
            for ids, own in zip(inputs, gradients, strict=True):
                rows, places = ids.unique(return_inverse=True)
                summed = own.new_zeros(len(rows), outputs).index_add_(0, places, own)
                total.index_add_(0, rows, summed.square())
        elif inputs.shape[1] == 1:
            total.addmm_(gradients[:, 0].square().T, inputs[:, 0].square())
        else:
            for own_inputs, own in zip(inputs, gradients, strict=True):
                total.add_((own.T @ own_inputs).square_())
