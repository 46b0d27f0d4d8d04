"""The products with weights that no module of their own is called for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.recurrence import RecurrenceApart
from recall_lightning.weights.naming import find_weights, memory_of, named_submodules
from recall_lightning.weights.sharding import is_sharded

Seen = Callable[[LinearMap, nn.Module, Tensor, Tensor], Tensor]
"""Is told of a product y = Wx + b, (map, owner of W, x, y), and returns y or a copy of it."""


@contextmanager
def multiplications(module: nn.Module, maps: Iterable[LinearMap], seen: Seen) -> Iterator[None]:
    """Tell of each product with a weight of the kind ``"projection"`` inside the ``with`` block.

    Such a weight is multiplied inside the module that owns it, by
    :func:`torch.nn.functional.linear`. It is known by its memory, a part of a packed weight by that
    of its rows. For those of attention and recurrent layers use :func:`products_apart` inside.

    Args:
        module: The model.
        maps: Of any kind; those of others are called as modules, and hooks tell of them.
        seen: What to tell; what it returns goes on in place of y.

    Example:
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> attention = nn.MultiheadAttention(4, 2)
        >>> shapes = []
        >>> def seen(linear_map, owner, x, y):
        ...     shapes.append((linear_map.name, tuple(y.shape)))
        ...     return y
        >>> with multiplications(attention, find_linear_maps(attention)[0], seen):
        ...     with products_apart():
        ...         _ = attention(*[torch.ones(3, 1, 4)] * 3)
        >>> shapes[0], shapes[-1]
        (('in_proj_weight[0:4]', (3, 1, 4)), ('out_proj.weight', (3, 1, 4)))
    """
    inside = [one for one in maps if one.kind == "projection"]
    if not inside:
        yield
        return
    with _Watch(module, inside, seen):
        yield


@contextmanager
def products_apart() -> Iterator[None]:
    """Have layers of one kernel multiply their weights one by one inside the ``with`` block.

    ``nn.MultiheadAttention`` and all else that calls
    :func:`torch.nn.functional.multi_head_attention_forward` compute the same by a
    :func:`torch.nn.functional.linear` for query, key, value and output, which hooks can't see but
    :func:`multiplications` around it does. PyTorch's fused kernels for evaluation, and nested
    tensors in place of padding, are not taken meanwhile. So do recurrent layers, see
    :class:`~recall_lightning.measuring.recurrence.RecurrenceApart`.
    """
    with RecurrenceApart(), _AttentionApart():
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, module: nn.Module, maps: list[LinearMap], seen: Seen) -> None:
        super().__init__()
        self.module, self.maps, self.seen = module, maps, seen
        modules = named_submodules(module)
        self.owners = {one: modules.get(one.modules[0], module) for one in maps}
        weights = find_weights(module, [one.weight for one in maps])
        self.sharded = any(is_sharded(weight) for weight in weights.values())
        self.by_memory = self._found()

    def _found(self) -> dict[object, LinearMap]:
        weights = find_weights(self.module, [one.weight for one in self.maps])
        return {
            memory_of(one.part_of(weights[one.weight])): one
            for one in self.maps
            if one.weight in weights and not is_sharded(weights[one.weight])
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not functional.linear:
            return result
        given, weight = _of_linear(*args, **(kwargs or {}))
        one = self.by_memory.get(memory_of(weight))
        if one is None and self.sharded:  # weights are whole only while their module computes
            one = self._found().get(memory_of(weight))
        return result if one is None else self.seen(one, self.owners[one], given, result)


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return input, weight


class _AttentionApart(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        given = _ATTENTION.bind(*args, **(kwargs or {}))
        given.apply_defaults()
        return _attention(**given.arguments)


_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    use_separate_proj_weight: bool,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention between projections of our own: its are by the identity."""
    weights = [q_proj_weight, k_proj_weight, v_proj_weight]
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        weights = list(in_proj_weight.chunk(3))
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    projected = []
    for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
        assert weight is not None
        projected.append(functional.linear(x, weight, bias))
    one = torch.eye(query.shape[-1], dtype=projected[0].dtype, device=query.device)
    others |= dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), one)
    others |= {"in_proj_weight": None, "in_proj_bias": None, "use_separate_proj_weight": True}
    others |= {"out_proj_weight": one, "out_proj_bias": None}
    others |= dict(zip(("query", "key", "value"), projected, strict=True))
    attended, shares = functional.multi_head_attention_forward(**others)
    return functional.linear(attended, out_proj_weight, out_proj_bias), shares
