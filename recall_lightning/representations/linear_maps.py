"""The linear maps inside a model, and the second moments of what they are given."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from recall_lightning.representations.hidden_states import undisturbed
from recall_lightning.representations.masks import token_mask
from recall_lightning.representations.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
)
from recall_lightning.snapshots import canonical_name, memory_of, named_weights

Kind = Literal["linear", "transposed", "convolution", "embedding"]


@dataclass(frozen=True)
class LinearMap:
    """A weight, and its bias, that act as y = Wx + b on the inputs of one or more modules.

    Attributes:
        weight: Name of W among :func:`~recall_lightning.snapshots.named_weights`.
        bias: Name of b there; None where there is none, or it is not trained.
        kind: How W is stored: ``"linear"`` (out, in), ``"transposed"`` (in, out),
            ``"convolution"`` (out, in, kernel …), ``"embedding"`` (rows, dimension).
        modules: The modules whose inputs x are; several where one weight is used by several.
        width: Entries of x, with a 1 at the end where there is a bias; an embedding's rows.
        second_factor: Where the map is a LoRA update scale · BA and ``weight`` is A: the name of B.
    """

    weight: str
    bias: str | None
    kind: Kind
    modules: tuple[str, ...]
    width: int
    second_factor: str | None = None


def find_linear_maps(
    module: nn.Module, factors: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[LinearMap], dict[str, str]]:
    """Find the linear maps among a model's trainable weights.

    These are ``nn.Linear`` (several projections fused in one are one map: they have one input),
    Hugging Face's ``Conv1D``, convolutions of one group over unfolded inputs, and embeddings. A
    weight that several modules of one kind share is one map of all their inputs.

    Args:
        module: The model.
        factors: Names of the factors of LoRA updates, A to B: each pair is one map.

    Returns:
        The maps, in order of registration; and of every other weight matrix (two dimensions or
        more) the reason why it is none.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> maps, others = find_linear_maps(mlp)
        >>> [(m.weight, m.bias, m.width) for m in maps], others
        ([('0.weight', '0.bias', 5), ('2.weight', None, 8)], {})
    """
    weights = named_weights(module)
    names = {memory_of(weight): name for name, weight in weights.items()}
    found: dict[str, LinearMap] = {}
    others: dict[str, str] = {}
    for module_name, child in module.named_modules():
        own = _own_weight(child, names)
        if own is None or own in factors.values():
            continue
        kind = _kind(child)
        if isinstance(kind, _NoMap):
            others[own] = kind.reason
            continue
        if own in factors and kind != "linear":
            others[own] = "it is a LoRA update of no nn.Linear"
            continue
        one = _linear_map(child, own, kind, names, canonical_name(module_name))
        one = replace(one, second_factor=factors.get(own))
        earlier = found.get(own, one)
        if (earlier.kind, earlier.bias) == (one.kind, one.bias):
            found[own] = replace(
                earlier, modules=tuple(dict.fromkeys([*earlier.modules, *one.modules]))
            )
        else:
            others[own] = "it is shared by two different maps, such as embedding and output head"
    owners = Counter(one.bias for one in found.values() if one.bias is not None)
    for name, one in found.items():
        if one.bias is not None and owners[one.bias] > 1:
            others.setdefault(name, f"it shares its bias {one.bias} with another map")
    found = {name: one for name, one in found.items() if name not in others}
    for name, weight in weights.items():
        if weight.ndim > 1 and name not in found and name not in factors.values():
            others.setdefault(name, "no module that is a linear map owns it")
    return list(found.values()), others


def input_moments(
    module: nn.Module,
    maps: Sequence[LinearMap],
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], Any],
    full_width: int = 1024,
    rank: int = 128,
) -> dict[str, Moments]:
    """Run a model over batches and sum up the second moments of what its linear maps are given.

    The moments are means over tokens that are no padding (or over samples, or image patches),
    gathered by forward hooks in evaluation mode. The model's mode, gradients, metrics and every
    random state are as before.

    Args:
        module: The model.
        maps: Those of :func:`find_linear_maps`.
        batches: Batches on the model's device.
        forward: Runs the module on one batch.
        full_width: Maps of more inputs than this have moments of low rank plus a diagonal.
        rank: That rank.

    Returns:
        Weight name to mean moments, float32 on the weight's device; a map that computed nothing is
        missing.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(2, 3, bias=False))
        >>> maps, _ = find_linear_maps(mlp)
        >>> moments = input_moments(mlp, maps, [torch.eye(2)], lambda module, batch: module(batch))
        >>> moments["0.weight"].matrix
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    sums: dict[str, Moments] = {}
    current: list[Any] = [None]

    two_stacks = any("encoder" in name for one in maps for name in one.modules)

    def add(linear_map: LinearMap, child: nn.Module, given: Tensor) -> None:
        if linear_map.weight not in sums:
            empty = empty_moments(linear_map, given.device, full_width, rank)
            sums[linear_map.weight] = empty
        mask = token_mask(current[0], two_stacks and "decoder" in linear_map.modules[0])
        with torch.autocast(given.device.type, enabled=False):  # sums want float32
            sums[linear_map.weight].update(_rows(linear_map, child, given, mask))

    with undisturbed(module), _hooked(module, maps, add):
        for batch in batches:
            current[0] = batch
            forward(module, copy.copy(batch))  # a forward may pop what it takes
    return {name: moments.mean() for name, moments in sums.items() if float(moments.count) > 0}


def as_matrix(linear_map: LinearMap, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a map's weight as (out, width), its bias the last column; an embedding as it is.

    Example:
        >>> linear_map = LinearMap("w", "b", "linear", ("",), 3)
        >>> as_matrix(linear_map, {"w": torch.eye(2), "b": torch.tensor([5.0, 6.0])})
        tensor([[1., 0., 5.],
                [0., 1., 6.]])
    """
    weight = tensors[linear_map.weight].detach()
    if linear_map.kind == "transposed":
        weight = weight.T
    matrix = weight.flatten(1)
    if linear_map.bias is None:
        return matrix
    return torch.cat([matrix, tensors[linear_map.bias].detach()[:, None]], dim=1)


def from_matrix(
    linear_map: LinearMap, matrix: Tensor, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a map from its matrix, in the shapes of ``like``: undo as_matrix."""
    parts = {}
    if linear_map.bias is not None:
        parts[linear_map.bias] = matrix[:, -1]
        matrix = matrix[:, :-1]
    if linear_map.kind == "transposed":
        matrix = matrix.T
    parts[linear_map.weight] = matrix.reshape(like[linear_map.weight].shape)
    return parts


class _NoMap:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _own_weight(child: nn.Module, names: Mapping[object, str]) -> str | None:
    weight = getattr(child, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return None
    return names.get(memory_of(weight))


def _kind(child: nn.Module) -> Kind | _NoMap:
    if is_parametrized(child):
        return _NoMap("it is parametrized")
    if isinstance(child, nn.Embedding):
        return "embedding"
    if isinstance(child, nn.modules.conv._ConvTransposeNd):
        return _NoMap("it is a transposed convolution")
    if isinstance(child, (nn.Conv1d, nn.Conv2d)):
        return "convolution" if child.groups == 1 else _NoMap("it is a convolution of groups")
    if isinstance(child, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return _NoMap("nn.MultiheadAttention computes with it without calling it")
    if isinstance(child, nn.Linear):
        return "linear"
    if type(child).__name__ == "Conv1D" and type(child).__module__ == "transformers.pytorch_utils":
        return "transposed"
    return _NoMap(f"{type(child).__name__} is no linear map that is known")


def _linear_map(
    child: nn.Module,
    weight: str,
    kind: Kind,
    names: Mapping[object, str],
    module_name: str,
) -> LinearMap:
    given = child.weight
    assert isinstance(given, Tensor)
    bias = getattr(child, "bias", None) if kind != "embedding" else None
    bias_name = names.get(memory_of(bias)) if isinstance(bias, Tensor) else None
    width = len(given) if kind in ("embedding", "transposed") else given[0].numel()
    return LinearMap(weight, bias_name, kind, (module_name,), width + (bias_name is not None))


def empty_moments(
    linear_map: LinearMap, device: torch.device, full_width: int = 1024, rank: int = 128
) -> Moments:
    """Return the moments of no input, of the kind that :func:`input_moments` gives a map.

    Example:
        >>> linear_map = LinearMap("w", None, "linear", ("",), 3)
        >>> empty_moments(linear_map, torch.device("cpu")).matrix.shape
        torch.Size([3, 3])
    """
    if linear_map.kind == "embedding":
        return RowCounts.empty(linear_map.width, device)
    if linear_map.width > full_width:
        return LowRankMoments.empty(linear_map.width, min(rank, linear_map.width), device)
    return FullMoments.empty(linear_map.width, device)


@contextmanager
def _hooked(
    module: nn.Module,
    maps: Sequence[LinearMap],
    add: Callable[[LinearMap, nn.Module, Tensor], None],
) -> Iterator[None]:
    """Call ``add`` with a map, its module and what the module is given, before each computes."""
    modules = {canonical_name(name): child for name, child in module.named_modules()}

    def hook_of(linear_map: LinearMap) -> Callable[..., None]:
        def hook(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            add(linear_map, child, args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [
        modules[name].register_forward_pre_hook(hook_of(linear_map), with_kwargs=True)
        for linear_map in maps
        for name in linear_map.modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(linear_map: LinearMap, child: nn.Module, given: Tensor, mask: Tensor | None) -> Tensor:
    """Return the inputs one by one, (inputs, width), without those on padding."""
    if linear_map.kind == "convolution":
        assert isinstance(child, (nn.Conv1d, nn.Conv2d))
        rows = _unfolded(child, given)
    else:
        tokens = given.shape if linear_map.kind == "embedding" else given.shape[:-1]
        chosen = mask is not None and tokens == mask.shape
        rows = given[mask] if chosen else given
        one = linear_map.kind == "embedding"
        rows = rows.flatten() if one else rows.reshape(-1, given.shape[-1])
    if linear_map.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows


def _unfolded(child: nn.Conv1d | nn.Conv2d, images: Tensor) -> Tensor:
    """Return the patches that a convolution multiplies, (patches, in · kernel)."""
    spatial = len(child.kernel_size)
    images = images if images.dim() == spatial + 2 else images[None]
    if child.padding_mode != "zeros" or isinstance(child.padding, str):
        mode = "constant" if child.padding_mode == "zeros" else child.padding_mode
        images = functional.pad(images, child._reversed_padding_repeated_twice, mode=mode)
        padding: tuple[int, ...] = (0,) * spatial
    else:
        padding = child.padding
    sizes = (child.kernel_size, child.dilation, padding, child.stride)
    if spatial == 1:  # unfold knows images only
        images = images[:, :, None]
        first = ((1,), (1,), (0,), (1,))
        sizes = tuple((*one, *size) for one, size in zip(first, sizes, strict=True))  # type: ignore[assignment]
    return functional.unfold(images, *sizes).transpose(1, 2).flatten(0, 1)
