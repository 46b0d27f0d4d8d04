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

from recall_lightning.measuring.architecture import is_encoder_decoder, predicts_next_token
from recall_lightning.weights.naming import canonical_name, memory_of, named_weights

Kind = Literal[
    "linear",
    "transposed",
    "convolution",
    "transposed convolution",
    "embedding",
    "bag",
    "projection",
]


@dataclass(frozen=True)
class LinearMap:
    """A weight, and its bias, that act as y = Wx + b on the inputs of one or more modules.

    Attributes:
        weight: Name of W among :func:`~recall_lightning.weights.naming.named_weights`.
        bias: Name of b there; None where there is none, or it is not trained.
        kind: How W is stored: ``"linear"`` (out, in), ``"transposed"`` (in, out),
            ``"convolution"`` (out, in, kernel …), ``"transposed convolution"`` (in, out,
            kernel …), ``"embedding"`` and ``"bag"`` (rows, dimension), the latter where lookups of
            one sample count together, and ``"projection"`` (out, in), which is multiplied inside
            the module that owns it.
        modules: The modules whose inputs x are; several where one weight is used by several.
        width: Entries of x, with a 1 at the end where there is a bias; the rows of an embedding, or
            of one that is summed in bags.
        second_factor: Where the map is a LoRA update scale · BA and ``weight`` is A: the name of B.
        layer: Of a LoRA update: the module that is given x and adds the update to its outputs y.
        rows: Where several maps are packed in one weight, and their biases alike: which rows are
            this one's, from the first to before the last.
    """

    weight: str
    bias: str | None
    kind: Kind
    modules: tuple[str, ...]
    width: int
    second_factor: str | None = None
    layer: str | None = None
    rows: tuple[int, int] | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The modules that are given x and return y, or what y is added to."""
        return self.modules if self.layer is None else (self.layer,)

    @property
    def name(self) -> str:
        """What the map is called among all of a model: its weight, and the rows of a packed one.

        >>> LinearMap("w", None, "projection", ("",), 3, rows=(0, 3)).name
        'w[0:3]'
        """
        return self.weight if self.rows is None else f"{self.weight}[{self.rows[0]}:{self.rows[1]}]"

    def part_of(self, tensor: Tensor) -> Tensor:
        """Return what is this map's of a packed weight, or bias; else all of it."""
        return tensor if self.rows is None else tensor[slice(*self.rows)]

    @property
    def inputs(self) -> int:
        """Entries of x without the 1 of a bias."""
        return self.width - (self.bias is not None)

    def outputs(self, weights: Mapping[str, Tensor]) -> int:
        """Return the entries of y, given the model's weights by name."""
        if self.second_factor is not None:
            return len(weights[self.second_factor])
        if self.rows is not None:
            return self.rows[1] - self.rows[0]
        weight = weights[self.weight]
        return int(weight.shape[0 if self.kind in _OUTPUTS_FIRST else 1])


_TABLES = ("embedding", "bag")
_OUTPUTS_FIRST = ("linear", "convolution", "projection")


def find_linear_maps(
    module: nn.Module,
    factors: Mapping[str, str] = MappingProxyType({}),
    layers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[LinearMap], dict[str, str]]:
    """Find the linear maps among a model's trainable weights.

    These are ``nn.Linear`` (several projections fused in one are one map: they have one input),
    Hugging Face's ``Conv1D``, convolutions over unfolded inputs, embeddings and bags of them, the
    projections of ``nn.MultiheadAttention``, three of which may be packed in one weight, and those
    of recurrent layers, of inputs and of hidden states. A weight that several modules of one kind
    share is one map of all their inputs. An embedding's lookups count one by one where each token
    has a prediction of its own, in language models, and by sequences elsewhere.

    Args:
        module: The model.
        factors: Names of the factors of LoRA updates, A to B: each pair is one map.
        layers: Of such an A, the name of the module that adds the update to its outputs.

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
    by_token = predicts_next_token(module) or is_encoder_decoder(module)
    inside: set[object] = set()  # what a module multiplies without calling the part that has it
    for module_name, child in module.named_modules():
        if isinstance(child, nn.MultiheadAttention):
            candidates = _projections(child, names, canonical_name(module_name))
            inside.add(memory_of(child.out_proj.weight))
        elif isinstance(child, nn.RNNBase | nn.RNNCellBase):
            candidates = _recurrent(child, names, canonical_name(module_name))
        else:
            candidates = _own_map(child, names, canonical_name(module_name), inside)
        for own, one in candidates:
            if own in factors.values():
                continue
            if isinstance(one, _NoMap):
                others[own] = one.reason
            elif own in factors and one.kind != "linear":
                others[own] = "it is a LoRA update of no nn.Linear"
            elif one.kind == "embedding" and not by_token:
                _enter(replace(one, kind="bag"), found, others)
            else:
                factor, layer = factors.get(own), layers.get(own)
                _enter(replace(one, second_factor=factor, layer=layer), found, others)
    owners = Counter((one.bias, one.rows) for one in found.values() if one.bias is not None)
    for one in found.values():
        if one.bias is not None and owners[one.bias, one.rows] > 1:
            others.setdefault(one.weight, f"it shares its bias {one.bias} with another map")
    maps = [one for one in found.values() if one.weight not in others]
    known = {one.weight for one in maps}
    for name, weight in weights.items():
        if weight.ndim > 1 and name not in known and name not in factors.values():
            others.setdefault(name, "no module that is a linear map owns it")
    return maps, others


def _enter(one: LinearMap, found: dict[str, LinearMap], others: dict[str, str]) -> None:
    earlier = found.get(one.name, one)
    if (earlier.kind, earlier.bias) == (one.kind, one.bias):
        modules = tuple(dict.fromkeys([*earlier.modules, *one.modules]))
        found[one.name] = replace(earlier, modules=modules)
    else:
        others[one.weight] = "it is shared by two different maps, such as embedding and output head"


def as_matrix(linear_map: LinearMap, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a map's weight as (out, width), its bias the last column; an embedding as it is.

    Example:
        >>> linear_map = LinearMap("w", "b", "linear", ("",), 3)
        >>> as_matrix(linear_map, {"w": torch.eye(2), "b": torch.tensor([5.0, 6.0])})
        tensor([[1., 0., 5.],
                [0., 1., 6.]])
    """
    weight = linear_map.part_of(tensors[linear_map.weight].detach())
    if linear_map.kind in ("transposed", "transposed convolution", "bag"):
        weight = weight.transpose(0, 1)
    matrix = weight.flatten(1)
    if linear_map.bias is None:
        return matrix
    bias = linear_map.part_of(tensors[linear_map.bias].detach())
    return torch.cat([matrix, bias[:, None]], dim=1)


def from_matrix(
    linear_map: LinearMap, matrix: Tensor, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a map from its matrix, in the shapes of ``like``: undo as_matrix.

    Rows of a packed weight that are other maps' are those of ``like``.
    """
    parts = {}
    if linear_map.bias is not None:
        parts[linear_map.bias] = matrix[:, -1]
        matrix = matrix[:, :-1]
    if linear_map.kind in ("transposed", "bag"):
        matrix = matrix.T
    elif linear_map.kind == "transposed convolution":
        inputs, _, *kernel = like[linear_map.weight].shape
        matrix = matrix.unflatten(1, (inputs, *kernel)).transpose(0, 1)
    parts[linear_map.weight] = matrix
    for name, part in parts.items():
        parts[name] = part.reshape(linear_map.part_of(like[name]).shape)
        if linear_map.rows is not None:
            whole = like[name].detach().clone()
            linear_map.part_of(whole).copy_(parts[name])
            parts[name] = whole
    return parts


class _NoMap:
    def __init__(self, reason: str) -> None:
        self.reason = reason


_Candidates = list[tuple[str, LinearMap | _NoMap]]  # with the names of their weights


def _own_map(
    child: nn.Module, names: Mapping[object, str], module_name: str, inside: set[object]
) -> _Candidates:
    """Return the map that a module is when it is called, if it has a weight matrix."""
    weight = getattr(child, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or memory_of(weight) in inside:
        return []
    if child._parameters.get("weight") is not weight and not is_parametrized(child):
        return []  # a wrapper shows its child's, such as PEFT's of modules_to_save
    own = names.get(memory_of(weight))
    if own is None:
        return []
    kind = _kind(child)
    if isinstance(kind, _NoMap):
        return [(own, kind)]
    bias = _bias(getattr(child, "bias", None) if kind not in _TABLES else None, names)
    width = len(weight) if kind in ("transposed", *_TABLES) else weight[0].numel()
    if kind == "transposed convolution":
        width = weight[:, 0].numel()
    one = LinearMap(own, bias, kind, (module_name,), width + (bias is not None))
    groups = child.groups if isinstance(child, nn.Conv1d | nn.Conv2d) else 1
    if groups == 1:
        return [(own, one)]
    each = len(weight) // groups
    return [(own, replace(one, rows=(i * each, (i + 1) * each))) for i in range(groups)]


def _projections(
    child: nn.MultiheadAttention, names: Mapping[object, str], module_name: str
) -> _Candidates:
    """Return the maps of query, key, value and output; packed are those of one embed_dim."""
    given: list[tuple[Tensor | None, Tensor | None, tuple[int, int] | None]]
    packed, own_bias = child.in_proj_weight, child.in_proj_bias
    if packed is not None:
        starts = range(0, len(packed), child.embed_dim)
        given = [(packed, own_bias, (start, start + child.embed_dim)) for start in starts]
    else:  # a bias of all three at once is nobody's own
        parts = (child.q_proj_weight, child.k_proj_weight, child.v_proj_weight)
        given = [(part, None, None) for part in parts]
    given.append((child.out_proj.weight, child.out_proj.bias, None))
    found: _Candidates = []
    for weight, bias, rows in given:
        own = names.get(memory_of(weight)) if isinstance(weight, Tensor) else None
        if own is None:
            continue
        assert weight is not None
        if is_parametrized(child) or is_parametrized(child.out_proj):
            found.append((own, _NoMap("it is parametrized")))
            continue
        name, width = _bias(bias, names), weight.shape[1]
        width += name is not None
        found.append((own, LinearMap(own, name, "projection", (module_name,), width, rows=rows)))
    return found


def _recurrent(
    child: nn.RNNBase | nn.RNNCellBase, names: Mapping[object, str], module_name: str
) -> _Candidates:
    """Return the maps of inputs and of hidden states, of all gates at once."""
    found: _Candidates = []
    for name, weight in child.named_parameters(recurse=False):
        own = names.get(memory_of(weight))
        if not name.startswith("weight") or own is None:
            continue
        if is_parametrized(child):
            found.append((own, _NoMap("it is parametrized")))
            continue
        bias = _bias(getattr(child, name.replace("weight", "bias", 1), None), names)
        width = weight.shape[1] + (bias is not None)
        found.append((own, LinearMap(own, bias, "projection", (module_name,), width)))
    return found


def _bias(bias: object, names: Mapping[object, str]) -> str | None:
    return names.get(memory_of(bias)) if isinstance(bias, Tensor) else None


def _kind(child: nn.Module) -> Kind | _NoMap:
    if is_parametrized(child):
        return _NoMap("it is parametrized")
    if isinstance(child, nn.Embedding):
        looks_up = type(child).forward is nn.Embedding.forward
        return "embedding" if looks_up else _NoMap(f"{type(child).__name__} looks up its own way")
    if isinstance(child, nn.EmbeddingBag):
        if type(child).forward is not nn.EmbeddingBag.forward:
            return _NoMap(f"{type(child).__name__} looks up its own way")
        largest = _NoMap("it takes the largest of a bag")
        return "bag" if child.mode in ("sum", "mean") else largest
    if isinstance(child, nn.ConvTranspose1d | nn.ConvTranspose2d):
        several = _NoMap("it is a transposed convolution of groups")
        return "transposed convolution" if child.groups == 1 else several
    if isinstance(child, nn.Conv1d | nn.Conv2d):
        tiny = child.groups > 1 and child.groups == child.in_channels
        return _NoMap("it is a convolution of each channel by itself") if tiny else "convolution"
    if isinstance(child, nn.Linear):
        return "linear"
    if type(child).__name__ == "Conv1D" and type(child).__module__ == "transformers.pytorch_utils":
        return "transposed"
    return _NoMap(f"{type(child).__name__} is no linear map that is known")
