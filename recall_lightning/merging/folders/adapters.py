"""Merging PEFT adapters from file to file."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from recall_lightning.merging.folders.checked_sums import CheckedSums
from recall_lightning.merging.folders.inputs import check_dtypes, check_shapes, refuse_infinite
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.functional import METHODS
from recall_lightning.merging.lora.config import AdapterConfig, merged_adapter_config
from recall_lightning.merging.lora.low_rank import LoraFactors, merge_lora
from recall_lightning.merging.lora.pairs import LoraPair, adapter_pairs
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.reading import ModelFiles


class AdapterMerge:
    """How LoRA adapters are merged: what is written, and how each tensor is made.

    Updates are summed as ΔW = scale · BA; a module that an adapter leaves alone counts as zero
    there. Whole modules saved beside the factors are summed like any other weight.

    Args:
        models: Adapters of one base.
        settings: Of the merge.

    Attributes:
        plan: Name to dtype and shape of everything that is written.
        shapes: Name to shape of everything that has a weight.
        config: The ``adapter_config.json`` of the result.
        discarded_energy: Module to the part of ‖ΔW‖² that its rank lost; filled by ``tensors``.

    Raises:
        ValueError: If the method is not a weighted sum, or an adapter is none that can be merged.
    """

    stem = "adapter_model"

    def __init__(self, models: Sequence[ModelFiles], settings: MergeSettings) -> None:
        if not settings.how.always_sums:
            others = " or ".join(other.name for other in METHODS.values() if other.always_sums)
            raise ValueError(
                f"{settings.method} works on full weights and {models[0].path} is an adapter: use "
                f"{others}, or merge the adapters into their base first"
            )
        _check_one_base(models, settings)
        self._models = models
        self._dtype = None if settings.out_dtype is None else getattr(torch, settings.out_dtype)
        self._device = settings.device
        self._sums = CheckedSums(models, settings.device)
        read = [_read_adapter(model) for model in models]
        self._pairs = [pairs for pairs, _ in read]
        self._plain = read[0][1]
        for model, (_, plain) in zip(models, read, strict=True):
            _check_plain(model, plain, models[0], self._plain)
        self._holders = {  # of each module, the first adapter that has it
            module: index
            for index, pairs in reversed(list(enumerate(self._pairs)))
            for module in pairs
        }
        self._ranks = {module: self._rank(module, settings.rank) for module in self._holders}
        self.discarded_energy: dict[str, float] = {}
        self.plan = self._planned()
        self.shapes = {
            name: shape for name, (dtype, shape) in self.plan.items() if dtype.is_floating_point
        }
        self.config = merged_adapter_config([m.adapter_config for m in models], self._ranks)
        if settings.base is not None:
            self.config["base_model_name_or_path"] = str(settings.base)

    def tensors(
        self, weights: Sequence[Mapping[str, float]]
    ) -> Iterator[tuple[str, Tensor | Iterator[Tensor]]]:
        """Yield every tensor of the plan, given each model's weight by name."""
        for module, holder in self._holders.items():
            pair = self._pairs[holder][module]
            adapting = [i for i, pairs in enumerate(self._pairs) if module in pairs]
            factors = [self._factors(i, module) for i in adapting]
            shares = [weights[i][pair.a] for i in adapting]
            try:
                merged = merge_lora(factors, shares, self._ranks[module])
            except ValueError as error:
                raise ValueError(f"the adapters of {module!r}: {error}") from error
            self.discarded_energy[module] = merged.discarded_energy
            like = {name: self._models[holder][name] for name in (pair.a, pair.b)}
            for name, tensor in pair.tensors(merged, like).items():
                dtype = self.plan[name][0]
                if not all_finite(tensor.to(dtype)):
                    refuse_infinite([], name, dtype)
                yield name, tensor.to(dtype)
        for name in self._plain:
            if name in self.shapes:
                shares = [given[name] for given in weights]
                yield name, self._sums.chunks(name, shares, self.plan[name][0])
            else:
                yield name, self._models[0][name]

    def _factors(self, index: int, module: str) -> LoraFactors:
        model, pair = self._models[index], self._pairs[index][module]
        try:
            return pair.factors({n: model[n].to(self._device) for n in (pair.a, pair.b)})
        except ValueError as error:
            raise ValueError(f"{model.path}: {error}") from error

    def _rank(self, module: str, wanted: int | str | None) -> int:
        pairs = [
            (model, pairs[module])
            for model, pairs in zip(self._models, self._pairs, strict=True)
            if module in pairs
        ]
        ranks = [pair.rank for _, pair in pairs]
        model, pair = pairs[0]
        most = min(math.prod(model.shape(pair.a)[1:]), model.shape(pair.b)[0])
        rank = sum(ranks) if wanted == "sum" else wanted or max(ranks)
        return min(int(rank), most)

    def _planned(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        plan: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for module, holder in self._holders.items():
            model, pair = self._models[holder], self._pairs[holder][module]
            rank = self._ranks[module]
            a, b = model.shape(pair.a), model.shape(pair.b)
            plan[pair.a] = self._dtype or model.dtype(pair.a), (rank, *a[1:])
            plan[pair.b] = self._dtype or model.dtype(pair.b), (b[0], rank, *b[2:])
        for name in self._plain:
            dtype = self._models[0].dtype(name)
            dtype = (self._dtype or dtype) if dtype.is_floating_point else dtype
            plan[name] = dtype, self._models[0].shape(name)
        return plan


def _read_adapter(model: ModelFiles) -> tuple[dict[str, LoraPair], list[str]]:
    """Return an adapter's factors by module, and the names of its whole modules' tensors."""
    config = AdapterConfig.read(model.adapter_config, str(model.path / "adapter_config.json"))
    pairs, plain = adapter_pairs(model, config, str(model.path))
    for pair in pairs:
        if min(len(model.shape(pair.a)), len(model.shape(pair.b))) < 2:
            raise ValueError(f"{model.path} must hold matrices for {pair.module!r}")
    return {pair.module: pair for pair in pairs}, plain


def _check_plain(
    model: ModelFiles, plain: Sequence[str], first: ModelFiles, wanted: Sequence[str]
) -> None:
    if set(plain) != set(wanted):
        raise ValueError(
            f"{model.path} and {first.path} save different whole modules "
            f"({min(set(plain) ^ set(wanted))!r} is in one only): they can be merged only where "
            "all have them"
        )
    check_shapes(model, first, plain)
    check_dtypes(model, first, plain)


def _check_one_base(models: Sequence[ModelFiles], settings: MergeSettings) -> None:
    """Check that adapters say that they are of one base, unless the user says so.

    Raises:
        ValueError: If they name different ones, or another revision, or checkpoints of one name
            were trained on different weights.
    """
    if settings.base is not None:
        return
    for model in models:
        base, first = _base(model), _base(models[0])
        if base != first:
            raise ValueError(
                f"{model.path} adapts {base} and {models[0].path} adapts {first}: give base if "
                "that is one model under two names, otherwise they cannot be merged"
            )
    digests = {model.path: model.beside["causal_lm"]["base"] for model in models if model.beside}
    for path, digest in digests.items():
        other, expected = next(iter(digests.items()))
        if digest != expected:
            raise ValueError(
                f"{path} and {other} adapt {_base(models[0])}, whose weights were others then: "
                "give base if that is what they are to be merged for"
            )


def _base(model: ModelFiles) -> str:
    config = model.adapter_config or {}
    revision = config.get("revision")
    return f"{config.get('base_model_name_or_path')}{f' at {revision}' if revision else ''}"
