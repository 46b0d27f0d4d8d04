"""The diagonal of the Fisher information of linear maps, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.batches import batch_size, detached
from recall_lightning.measuring.curvature import feature_axis, sampled_loss
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.guarded_parameters import no_gradients_left
from recall_lightning.measuring.input_moments import hooked
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.map_inputs import given_to, rows_of
from recall_lightning.measuring.multiplications import multiplications, products_apart
from recall_lightning.measuring.predictions import FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of


@dataclass(frozen=True)
class FisherDiagonal:
    """The diagonal of the Fisher information of linear maps' matrices.

    Attributes:
        diagonal: Map name to it, float32 in the shape of the map's matrix: (out, width), of an
            embedding (rows, dimension) and of one that is summed in bags (dimension, rows).
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
        products_apart(),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        for batch in batches:
            squares.samples = batch_size(batch)
            output = view.forward(module, detached(batch))  # a forward may write into it
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

    @contextmanager
    def gathered_from(self, module: nn.Module) -> Iterator[None]:
        def register(child: nn.Module, linear_map: LinearMap) -> RemovableHandle:
            def hook(
                child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
            ) -> Tensor | None:
                if not (isinstance(output, Tensor) and output.requires_grad):
                    return None
                return self._see(linear_map, child, given_to(child, args, kwargs), output)

            return child.register_forward_hook(hook, with_kwargs=True)

        with hooked(module, self.maps, register), multiplications(module, self.maps, self._see):
            yield

    def _see(self, linear_map: LinearMap, child: nn.Module, given: Tensor, y: Tensor) -> Tensor:
        if not y.requires_grad:
            return y
        self._computed.append((linear_map, child, given.detach(), y))
        return y.clone()  # what is computed in place must not change the one kept

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
        calls: dict[LinearMap, list[tuple[Tensor, Tensor]]] = {}
        for (linear_map, child, given, _), gradient in zip(computed, gradients, strict=True):
            if gradient is not None:
                pair = self._by_sample(linear_map, child, given, gradient)
                calls.setdefault(linear_map, []).append(pair)
        for linear_map, parts in calls.items():
            if len({len(inputs) for inputs, _ in parts}) > 1:
                # a weight of several uses that part samples differently
                parts = [(i.flatten(0, 1)[None], g.flatten(0, 1)[None]) for i, g in parts]
            inputs = torch.cat([part[0] for part in parts], 1)
            gradients_ = torch.cat([part[1] for part in parts], 1)
            self._square(linear_map, inputs, gradients_)

    def _by_sample(
        self, linear_map: LinearMap, child: nn.Module, given: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and gradients as (samples, tokens, …), or of one sample for all."""
        if _is_time_first(child, given):
            given, gradient = given.transpose(0, 1), gradient.transpose(0, 1)
        gradient = gradient.movedim(feature_axis(child), -1).float()
        if linear_map.kind == "convolution" and linear_map.rows is not None:  # of its group
            gradient = gradient[..., slice(*linear_map.rows)]
        samples = len(gradient) if len(gradient) == self.samples and gradient.dim() > 1 else 1
        rows = rows_of(linear_map, child, given)
        gradient = gradient.reshape(samples, -1, gradient.shape[-1])
        if rows.is_sparse:
            bags = torch.stack([rows.to_dense()]) if samples == 1 else rows.to_dense()[:, None]
            return bags, gradient
        rows = rows if linear_map.kind in ("embedding", "bag") else rows.float()
        return rows.reshape(samples, -1, *rows.shape[1:]), gradient

    def _square(self, linear_map: LinearMap, inputs: Tensor, gradients: Tensor) -> None:
        outputs = gradients.shape[-1]
        shape = (outputs, linear_map.width)
        rows_first = linear_map.kind == "embedding"
        shape = shape[::-1] if rows_first else shape
        total = self.sums.setdefault(linear_map.name, gradients.new_zeros(shape))
        if inputs.dim() == 2:  # rows that were looked up
            total = total if rows_first else total.T
            for ids, own in zip(inputs, gradients, strict=True):
                rows, places = ids.unique(return_inverse=True)
                summed = own.new_zeros(len(rows), outputs).index_add_(0, places, own)
                total.index_add_(0, rows, summed.square())
        elif inputs.shape[1] == 1:
            total.addmm_(gradients[:, 0].square().T, inputs[:, 0].square())
        else:
            for own_inputs, own in zip(inputs, gradients, strict=True):
                total.add_((own.T @ own_inputs).square_())


def _is_time_first(child: nn.Module, given: Tensor) -> bool:
    """Tell whether what is multiplied inside a module has an axis of steps before its samples."""
    if given.dim() != 3:
        return False
    is_recurrent = isinstance(child, nn.RNNBase)
    return isinstance(child, nn.MultiheadAttention) or (is_recurrent and not child.batch_first)
