"""Whether linear maps are what they are taken for: by the gradient of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.batches import detached, entries_of
from recall_lightning.measuring.curvature import feature_axis
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.input_moments import hooked
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap, as_matrix
from recall_lightning.measuring.map_inputs import given_to, rows_of
from recall_lightning.measuring.multiplications import multiplications, products_apart
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.weights.naming import named_submodules, named_weights
from recall_lightning.weights.sharding import is_sharded


def unlike_linear_maps(
    module: nn.Module,
    maps: Sequence[LinearMap],
    batch: Any,
    view: ModelView | ProbeForward | None = None,
) -> dict[str, str]:
    """Run a model on a batch and compare the gradient of each map's weight with what it should be.

    Where y = Wx + b is all that becomes of a weight, the gradient of anything with regard to it is
    Σ gxᵀ, over its modules' inputs x and the gradients g at their outputs; those are what curvature
    is made of. It is something else where a module's forward or a hook changes its inputs or
    scales its outputs, and where the weight is used without a call of its module, alone or as well.
    The gradient is that of a random sum of what the model puts out. The module's mode, gradients,
    metrics and every random state are as before.

    Args:
        module: The model.
        maps: Those of :func:`~recall_lightning.measuring.linear_maps.find_linear_maps`.
        batch: A batch on the model's device.
        view: How the module is run; by default found.

    Returns:
        Weight name of each map that is none to the reason why. Nothing is said of sharded weights,
        of embeddings that scale their gradient, nor where no gradient can be had: of outputs
        without one, through reentrant checkpoints, or of a weight that had no part in them.

    Example:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return 3 * super().forward(x)
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> net = nn.Sequential(nn.Linear(4, 4), Scaled(4, 2))
        >>> list(unlike_linear_maps(net, find_linear_maps(net)[0], torch.randn(3, 4)))
        ['1.weight']
    """
    weights = named_weights(module)
    scaled = _scaling_embeddings(module)
    maps = [m for m in maps if m.weight in weights and scaled.isdisjoint(m.modules)]
    maps = [m for m in maps if not is_sharded(weights[m.weight])]
    calls = _Calls()
    with undisturbed(module), calls.of(module, maps), products_apart(), torch.enable_grad():
        torch.manual_seed(0)
        outputs = differentiable(view_of(module, view).forward(module, detached(batch)))
        calls.is_over = True  # checkpointed layers compute once more in backward
        if not maps or not outputs:
            return {}
        wanted = [n for m in maps for n in (m.weight, m.bias) if n is not None]
        tensors = [weights[name] for name in wanted] + [y for *_, y in calls.found]
        total = torch.stack([(torch.randn_like(one) * one).sum() for one in outputs]).sum()
        try:
            gradients = torch.autograd.grad(total, tensors, allow_unused=True)
        except RuntimeError:  # reentrant checkpoints, operations without a derivative
            return {}
    of_weights = dict(zip(wanted, gradients[: len(wanted)], strict=True))
    return _compared(maps, weights, of_weights, calls, gradients[len(wanted) :])


def _compared(
    maps: Sequence[LinearMap],
    weights: Mapping[str, Tensor],
    of_weights: Mapping[str, Tensor | None],
    calls: _Calls,
    of_outputs: Sequence[Tensor | None],
) -> dict[str, str]:
    others = {}
    for one in maps:
        found = of_weights[one.weight]
        if found is None:
            continue
        if one.name not in calls.called:
            others[one.weight] = "it is used without a call of its module"
            continue
        own = [
            (child, x, y, g)
            for (name, child, x, y), g in zip(calls.found, of_outputs, strict=True)
            if name == one.name and g is not None
        ]
        dense = {n: _whole(of_weights[n], weights[n]) for n in (one.weight, one.bias) if n}
        if own and _differs(one, own, as_matrix(one, dense)):
            others[one.weight] = (
                "its gradient is not that of y = Wx + b: its module's forward, a hook or another "
                "use of it does more"
            )
    return others


def _scaling_embeddings(module: nn.Module) -> set[str]:
    named = named_submodules(module).items()
    return {name for name, child in named if getattr(child, "scale_grad_by_freq", False)}


class _Calls:
    """What the modules of linear maps were given, and put out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        self.called: set[str] = set()
        self.is_over = False

    @contextmanager
    def of(self, module: nn.Module, maps: Sequence[LinearMap]) -> Iterator[None]:
        def register(child: nn.Module, one: LinearMap) -> Any:
            def hook(child: nn.Module, args: Any, kwargs: dict[str, Any], y: Any) -> Any:
                if self.is_over:
                    return None
                self.called.add(one.name)
                x = given_to(child, args, kwargs)
                if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not y.requires_grad:
                    return None
                self.found.append((one.name, child, x, y))
                return y.clone()  # what is computed in place must not change the one kept

            return child.register_forward_hook(hook, with_kwargs=True)

        whole = [replace(one, layer=None) for one in maps]
        with hooked(module, whole, register), multiplications(module, maps, self._see):
            yield

    def _see(self, one: LinearMap, owner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.is_over:
            return y
        self.called.add(one.name)
        if not y.requires_grad:
            return y
        self.found.append((one.name, owner, x, y))
        return y.clone()


@torch.no_grad()
def _differs(
    one: LinearMap, calls: Sequence[tuple[nn.Module, Tensor, Tensor, Tensor]], found: Tensor
) -> bool:
    """Tell whether Σ gxᵀ differs from a weight's gradient by more than rounding makes it."""
    expected, slack = torch.zeros_like(found, dtype=torch.float32), 0.0
    precision = torch.finfo(found.dtype).eps
    for child, x, y, g in calls:
        precision = max(precision, torch.finfo(y.dtype).eps)
        outputs = g.movedim(feature_axis(child), -1).flatten(0, -2).float()
        if one.kind == "convolution":  # whose groups put out one tensor
            outputs = one.part_of(outputs.T).T
        rows = rows_of(one, child, x)
        if len(rows) != len(outputs):
            return True
        if rows.is_sparse:
            expected += outputs.T @ rows
            slack += float(outputs.norm())
        elif one.kind in ("embedding", "bag"):
            padding = getattr(child, "padding_idx", None)
            counts = rows != (-1 if padding is None else padding)
            table = expected.T if one.kind == "bag" else expected
            table.index_add_(0, rows[counts], outputs[counts])
            slack += float(outputs.norm())
        elif rows.shape[1] != expected.shape[1] or outputs.shape[1] != len(expected):
            return True
        else:
            expected.addmm_(outputs.T, rows.float())
            slack += float(outputs.norm() * rows.float().norm()) / len(rows) ** 0.5
    size, distance = float(found.float().norm()), float((expected - found.float()).norm())
    return distance > max(5e-3, 4 * precision) * size + 10 * precision * slack


def _whole(gradient: Tensor | None, weight: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(weight)
    return gradient.to_dense() if gradient.is_sparse else gradient


def differentiable(output: Any) -> list[Tensor]:
    """Return the tensors of what a model put out that have a gradient, as real numbers.

    >>> [one.shape for one in differentiable({"a": torch.ones(2, requires_grad=True), "b": 1.0})]
    [torch.Size([2])]
    """
    if isinstance(output, Tensor):
        real = torch.view_as_real(output) if output.is_complex() else output
        return [real.float()] if output.requires_grad else []
    entries = entries_of(output)
    parts = entries.values() if entries is not None else output
    if not isinstance(parts, (tuple, list)) and entries is None:
        return []
    return [tensor for part in parts for tensor in differentiable(part)]
