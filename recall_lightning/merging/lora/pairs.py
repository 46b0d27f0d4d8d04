"""LoRA factors as PEFT keeps them in models and files, merged as the updates they stand for."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.merging.coefficients.linear_maps import MapCoefficient
from recall_lightning.merging.lora.config import AdapterConfig
from recall_lightning.merging.lora.low_rank import LoraFactors, merge_lora
from recall_lightning.merging.lora.names import adapter_tensor
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.naming import canonical_name, memory_of, named_weights
from recall_lightning.weights.sharding import sharded_like, whole

_PLAIN_LAYERS = {
    "peft.tuners.lora.layer": (
        "Linear",
        "Embedding",
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "MultiheadAttention",
    ),
    "peft.tuners.lora.bnb": ("Linear4bit", "Linear8bitLt"),  # by bitsandbytes
}
_FACTOR_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:(?<=embedding_[AB])|\.weight)"
)


@dataclass(frozen=True)
class LoraPair:
    """Where the two factors of one module's update are.

    Attributes:
        module: The module's name; in a file without PEFT's ``base_model.model.``.
        a: Name of the tensor A: (rank, in), for a convolution (rank, in, kernel …), for an
            embedding (rank, vocabulary).
        b: Name of the tensor B: (out, rank), (out, rank, 1 …), (dimension, rank).
        scale: What multiplies B A.
        rank: The rank.
        embedding: Whether the update is of an embedding.
    """

    module: str
    a: str
    b: str
    scale: float
    rank: int
    embedding: bool = False

    def factors(self, tensors: Mapping[str, Tensor]) -> LoraFactors:
        """Return the two tensors as matrices with ΔW = scale · b @ a in the layer's orientation.

        Those of an embedding change sides: there it is A that PEFT starts from zero, and the side
        that starts random is the one whose basis a merge in training keeps. A convolution's kernel
        becomes part of the input dimension.

        Raises:
            ValueError: If one is missing, holds a NaN or an infinity, or has not the pair's rank.
        """
        for name in (self.a, self.b):
            if name not in tensors:
                raise ValueError(f"the adapter must have the weight {name!r}")
        a, b = (whole(tensors[name].detach()) for name in (self.a, self.b))
        for name, tensor in ((self.a, a), (self.b, b)):
            if not all_finite(tensor):
                raise ValueError(
                    f"the weight {name!r} holds NaN or infinite values, and must be finite"
                )
        if a.ndim < 2 or b.ndim < 2 or a.shape[0] != self.rank or b.shape[1] != self.rank:
            raise ValueError(
                f"the factors of {self.module!r} have the shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}, and not the rank {self.rank} of the adapter's configuration; "
                "grouped convolutions cannot be merged"
            )
        a, b = a.flatten(1), b.flatten(1)
        return (
            LoraFactors(b.T, a.T, self.scale) if self.embedding else LoraFactors(a, b, self.scale)
        )

    def tensors(self, factors: LoraFactors, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the two tensors for factors of any rank: the inverse of :meth:`factors`.

        Args:
            factors: Matrices in the layer's orientation; their scale is not applied.
            like: Tensors under the pair's names, of which the kernel's shape is taken.
        """
        a, b = (factors.b.T, factors.a.T) if self.embedding else (factors.a, factors.b)
        a = a.reshape(-1, *like[self.a].shape[1:])
        b = b.reshape(len(b), -1, *like[self.b].shape[2:])
        return {self.a: a.contiguous(), self.b: b.contiguous()}


def find_lora_pairs(module: nn.Module) -> list[LoraPair]:
    """Find the trainable LoRA updates in a model that PEFT has adapted.

    Names are those of :func:`~recall_lightning.weights.naming.named_weights`. A base that
    bitsandbytes has quantised is no obstacle: what is merged is the adapter alone. A layer of which
    only one factor is trained is left out: its update is linear in that factor, merged like
    any other weight.

    Args:
        module: A model with PEFT's layers somewhere inside, or one without: then there are none.

    Raises:
        ValueError: If a trainable adapter is no plain LoRA adapter, has a base that is quantised in
            another way, is merged into its base, shares its factors, trains biases, or is active
            beside another one.
    """
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = {memory_of(weight): name for name, weight in named_weights(module).items()}
    pairs = []
    for name, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer) and any(
            memory_of(p) in names for p in _own_weights(layer)
        ):
            _refuse_layer(canonical_name(name), layer)
            pair = _pair_of(canonical_name(name), layer, names)
            pairs += [pair] if pair else []
    if pairs:
        _refuse_trained_biases(module)
        _refuse_shared(pairs)
    return pairs


def lerp_adapters_(
    live: Mapping[str, Tensor],
    snapshots: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Mapping[str, Any]],
    pairs: Sequence[LoraPair],
) -> dict[str, float]:
    """Merge updates in place: ΔW ← (1 − Σ wᵢ) ΔW + Σ wᵢ ΔW of snapshot i, at the live rank.

    Averaging A and B apart is not averaging B A: each sum of updates is brought back to the live
    rank, exactly where that suffices and else as its best approximation, in factors that continue
    the live ones (:func:`~recall_lightning.merging.lora.low_rank.merge_lora`). It is computed in
    float64 and rounded once. Sharded factors are gathered; every process must call.

    Args:
        live: Name to the tensor that is written; others than the pairs' are left alone.
        snapshots: Name to the tensor, of any rank and on any device, one mapping a snapshot.
        weights: One mapping a snapshot: the name of a pair's A to the snapshot's weight in [0, 1],
            or of one snapshot to the matrix of the update as a linear map.
        pairs: Which tensors are factors of one update.

    Returns:
        Module name to the part of ‖ΔW‖² that the live rank could not hold, in [0, 1].

    Raises:
        ValueError: If a tensor or weight is missing, shapes differ, weights are negative or sum to
            more than 1, or values are or would become NaN or infinite. Nothing has been written
            then.
    """
    merged: dict[str, Tensor] = {}
    discarded = {}
    for pair in pairs:
        like = pair.factors(live)
        old = [pair.factors(snapshot) for snapshot in snapshots]
        updates, shares = _parts(pair, like, old, weights)
        try:
            result = merge_lora(updates, shares, like=like)
        except ValueError as error:
            raise ValueError(f"the adapter of {pair.module!r}: {error}") from error
        for name, tensor in pair.tensors(result, live).items():
            merged[name] = tensor.to(live[name].dtype)
            if not all_finite(merged[name]):
                raise ValueError(
                    f"merging made the weight {name!r} infinite in its precision: use another one"
                )
        discarded[pair.module] = result.discarded_energy
    with torch.no_grad():
        for name, tensor in merged.items():
            live[name].copy_(sharded_like(tensor, live[name]))
    return discarded


def adapter_pairs(
    names: Iterable[str], config: AdapterConfig, where: str = "the adapter"
) -> tuple[list[LoraPair], list[str]]:
    """Pair the tensors of an adapter file by name.

    Args:
        names: Names as in ``adapter_model.safetensors``.
        config: The adapter's configuration.
        where: What an error calls the file.

    Returns:
        The pairs, and the names of all other tensors: the plain weights of ``modules_to_save``.

    Raises:
        ValueError: If a factor has no counterpart, or a tensor is of another kind of adapter.

    Example:
        >>> name = "base_model.model.layers.0.q_proj.lora_{}.weight"
        >>> config = AdapterConfig(r=4, lora_alpha=8)
        >>> pairs, rest = adapter_pairs([name.format("A"), name.format("B"), "head.bias"], config)
        >>> pairs[0].module, pairs[0].scale, rest
        ('layers.0.q_proj', 2.0, ['head.bias'])
    """
    sides: dict[tuple[str, bool], dict[str, str]] = {}
    rest = []
    for name in names:
        match = _FACTOR_NAME.fullmatch(name)
        if match:
            key = (match["module"], match["embedding"] is not None)
            sides.setdefault(key, {})[match["side"]] = name
        elif adapter_tensor([name]):
            raise ValueError(f"{where}: the tensor {name!r} must be of a plain LoRA adapter")
        else:
            rest.append(name)
    for found in sides.values():
        if len(found) < 2:
            raise ValueError(
                f"{where}: the factor {next(iter(found.values()))!r} lacks its other: save both"
            )
    pairs = [
        LoraPair(m, found["A"], found["B"], config.scale(m), config.rank(m), embedding)
        for (m, embedding), found in sides.items()
    ]
    return pairs, rest


def _parts(
    pair: LoraPair,
    live: LoraFactors,
    old: Sequence[LoraFactors],
    weights: Sequence[Mapping[str, Any]],
) -> tuple[list[LoraFactors], list[float]]:
    """Return the updates whose weighted sum is the merge, and their weights."""
    for given in weights:
        if pair.a not in given:
            raise ValueError(f"the factor {pair.a!r} needs a merge weight")
    taken = weights[0][pair.a]
    if isinstance(taken, MapCoefficient):
        parts = [live, *_pulled(taken, live, old[0])]
        return parts, [1.0] * len(parts)
    for given in weights:
        if torch.as_tensor(given[pair.a]).numel() != 1:
            raise ValueError(f"the factor {pair.a!r} needs one merge weight, not one an element")
    shares = [float(given[pair.a]) for given in weights]
    if not (all(share >= 0 for share in shares) and sum(shares) <= 1 + 1e-9):  # also for NaN
        raise ValueError(f"the merge weights of {pair.a!r} must be parts of 1, not {shares}")
    return [live, *old], [1 - sum(shares), *shares]


def _pulled(taken: MapCoefficient, live: LoraFactors, old: LoraFactors) -> list[LoraFactors]:
    """Return what a map's coefficient makes of ΔW_old − ΔW, as updates."""
    b, a = live.b.double(), live.a.double()
    left = torch.cat([old.scale * old.b.to(b), -live.scale * b], dim=1)
    pulled = []
    for wide, flat in taken.pull_product(left, torch.cat([old.a.to(a), a])):
        # any number may go from one side to the other; a merge takes B's size for that of a B
        size = float(torch.linalg.norm(left) / torch.linalg.norm(wide).clamp(min=1e-300))
        pulled.append(LoraFactors(flat / size, wide * size) if size else LoraFactors(flat, wide))
    return pulled


def _own_weights(layer: Any) -> list[Tensor]:
    """Return the tensors of a PEFT layer's adapters, without those of the base and of children."""
    parts = [getattr(layer, name, None) for name in layer.adapter_layer_names]
    return [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]


def _refuse_layer(name: str, layer: Any) -> None:
    kind = type(layer)
    what = f"the adapter layer {name!r} ({kind.__name__})"
    if kind.__name__ not in _PLAIN_LAYERS.get(kind.__module__, ()):
        raise ValueError(
            f"{what} cannot be merged: it is no plain LoRA layer, or its base is quantised by "
            "something else than bitsandbytes"
        )
    adapters = [key for key in layer.active_adapters if key in layer.scaling]
    if len(adapters) != 1:
        raise ValueError(f"{what} has the active adapters {adapters}: activate one of them")
    if layer.merged:
        raise ValueError(f"{what} is merged into its base: call unmerge_adapter() first")
    weight = getattr(layer.get_base_layer(), "weight", None)
    if kind.__module__ == "peft.tuners.lora.bnb":
        weight = None  # only the adapter is merged
    if weight is not None and not (weight.is_floating_point() and weight.element_size() > 1):
        raise ValueError(f"{what} cannot be merged: its base is quantised to {weight.dtype}")
    variant = getattr(layer, "lora_variant", {}).get(adapters[0])
    if layer.use_dora.get(adapters[0]) or variant is not None:
        variant_name = "DoRA" if layer.use_dora.get(adapters[0]) else type(variant).__name__
        raise ValueError(f"{what} cannot be merged: it is a {variant_name} layer, not plain LoRA")
    if getattr(layer, "lora_bias", {}).get(adapters[0]):
        raise ValueError(f"{what} cannot be merged: lora_bias=True is no part of B A")


def _pair_of(name: str, layer: Any, names: Mapping[object, str]) -> LoraPair | None:
    adapter = next(key for key in layer.active_adapters if key in layer.scaling)
    embedding = adapter in layer.lora_embedding_A
    if embedding:
        a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if memory_of(a) not in names or memory_of(b) not in names:
        return None
    scale = float(layer.scaling[adapter])
    return LoraPair(
        name, names[memory_of(a)], names[memory_of(b)], scale, layer.r[adapter], embedding
    )


def _refuse_trained_biases(module: nn.Module) -> None:
    for child in module.modules():
        configs = getattr(child, "peft_config", None)
        for adapter, config in configs.items() if isinstance(configs, Mapping) else ():
            if getattr(config, "bias", "none") != "none":
                raise ValueError(
                    f"the adapter {adapter!r} has bias={config.bias!r}: trained biases are no "
                    "update B A and cannot be merged; train it with bias='none'"
                )


def _refuse_shared(pairs: Sequence[LoraPair]) -> None:
    names = Counter(name for pair in pairs for name in (pair.a, pair.b))
    name, count = names.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"the factor {name!r} is one tensor for {count} modules: tied adapters cannot be merged"
        )
