"""The linear maps inside a model, and their matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from recall_lightning.weights.naming import canonical_name, memory_of, named_weights

Kind = Literal["linear", "transposed", "convolution", "embedding"]


@dataclass(frozen=True)
class LinearMap:
    """A weight, and its bias, that act as y = Wx + b on the inputs of one or more modules.

    Attributes:
        weight: Name of W among :func:`~recall_lightning.weights.naming.named_weights`.
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

    @property
    def inputs(self) -> int:
        """Entries of x without the 1 of a bias."""
        return self.width - (self.bias is not None)

    def outputs(self, weights: Mapping[str, Tensor]) -> int:
        """Return the entries of y, given the model's weights by name."""
        weight = weights[self.weight]
        return int(weight.shape[1 if self.kind in ("transposed", "embedding") else 0])


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
    if child._parameters.get("weight") is not weight and not is_parametrized(child):
        return None  # a wrapper shows its child's, as PEFT's modules_to_save
    return names.get(memory_of(weight))


def _kind(child: nn.Module) -> Kind | _NoMap:
    if is_parametrized(child):
        return _NoMap("it is parametrized")
    if isinstance(child, nn.Embedding):
        looks_up = type(child).forward is nn.Embedding.forward
        return "embedding" if looks_up else _NoMap(f"{type(child).__name__} looks up its own way")
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
