"""The models of a merge, opened and checked against one another before anything is computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from recall_lightning.checks import first_of
from recall_lightning.merging.folders.adapter_files import as_adapter
from recall_lightning.merging.folders.configs import config_differences
from recall_lightning.merging.folders.meaning import check_meanings
from recall_lightning.merging.folders.union import UnitedVocabulary
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.reading import ModelFiles, open_model

_SHOWN = 10
_VOCABULARY = ("embed", "wte", "lm_head", "shared.weight", "embed_out", "output_projection")
_POSITIONS = ("position", "pos_embed", "patch")
_SCALES = (".weight_scale", ".weight_scale_inv", ".SCB", ".qweight", ".weight_packed", ".absmax")
_AVERAGED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def open_models(
    paths: Sequence[str | Path],
    donor: str | Path | None,
    allow_different_configs: bool = False,
    unite: bool = False,
) -> list[ModelFiles]:
    """Open models that are to be merged, under the names of one of them.

    That one is ``donor`` if given, else the first Hugging Face folder, else the first model. Names
    of a Lightning checkpoint lose what its module puts in front (``model.``); its tensors outside
    of that, and second names of tied weights, are left out. To ``unite`` them gives all the rows
    of all their tokens, that one's first.

    Raises:
        ValueError: If a model cannot be read or is quantised, or they differ in their tensors'
            names or shapes (it lists up to ten), or in what these mean unless
            ``allow_different_configs``, or some are adapters and others not.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.ones(2)}, f"{folder}/a.safetensors")
        ...     save_file({"w": torch.ones(3)}, f"{folder}/b.safetensors")
        ...     open_models([f"{folder}/a.safetensors", f"{folder}/b.safetensors"], None)
        Traceback (most recent call last):
        ValueError: .../b.safetensors does not fit .../a.safetensors: 'w' is (3,) and not (2,); ...
    """
    models = [as_adapter(_untied(open_model(path))) for path in paths]
    kinds = {model.kind == "adapter" for model in models}
    if len(kinds) > 1:
        adapter = next(model for model in models if model.kind == "adapter")
        raise ValueError(
            f"{adapter.path} is an adapter and another model is not: merge adapters with adapters, "
            "or merge the adapter into its base first with peft's merge_and_unload"
        )
    named = [] if donor is None else [_untied(open_model(donor))]
    if kinds == {True} and unite:
        raise ValueError(
            f"tokenizer='union' is for whole models, and {models[0].path} is an adapter: leave it "
            "out"
        )
    if kinds == {True}:
        if not allow_different_configs:
            check_meanings([*named, *models])
        return models
    reference = named[0] if named else reference_of(models)
    refuse_quantised(reference)
    aligned = [_aligned(model, reference) for model in models]
    for model in aligned:
        _check_names(model, reference)
    if unite:
        several = _first([*named, *aligned], reference)
        united = UnitedVocabulary.of(several).united(several)
        reference = united[0]
        by_path = {id(old): new for old, new in zip(several, united, strict=True)}
        aligned = [by_path[id(model)] for model in aligned]
    for model in aligned:
        check_shapes(model, reference, list(reference))
        check_dtypes(model, aligned[0], list(reference))
    if not allow_different_configs:
        check_meanings([*named, *aligned], unite)
    return aligned


def _first(models: Sequence[ModelFiles], reference: ModelFiles) -> list[ModelFiles]:
    """Return models with the reference, or what was aligned to it, in front."""
    first = next(model for model in models if model.path == reference.path)
    return [first, *(model for model in models if model is not first)]


def reference_of(models: Sequence[ModelFiles]) -> ModelFiles:
    """Return the first Hugging Face folder, else the first model."""
    return next((model for model in models if model.kind == "huggingface"), models[0])


def tied_names(model: ModelFiles) -> dict[str, str]:
    """Map each second name of a stored tensor to its first; only checkpoints hold such."""
    first: dict[object, str] = {}
    tied = {}
    for name in model if model.kind == "lightning" else ():
        kept = first.setdefault(_place(model[name]), name)
        if kept != name and model[name].numel():
            tied[name] = kept
    return tied


def check_shapes(model: ModelFiles, reference: ModelFiles, names: Sequence[str]) -> None:
    """Check that the tensors of two models have the same shapes.

    Raises:
        ValueError: If not: it lists up to ten, and says so if it is the vocabulary that differs.
    """
    differing = [name for name in names if model.shape(name) != reference.shape(name)]
    if not differing:
        return
    shapes = [
        f"{name!r} is {model.shape(name)} and not {reference.shape(name)}" for name in differing
    ]
    shown = first_of(shapes, _SHOWN)
    if all(_counts_tokens(name, model, reference) for name in differing):
        here, there = model.shape(differing[0])[0], reference.shape(differing[0])[0]
        raise ValueError(
            f"{model.path} has a vocabulary of {here} and {reference.path} one of {there} "
            f"({shown}): give both the same tokenizer and resize_token_embeddings first"
        )
    raise ValueError(
        f"{model.path} does not fit {reference.path}: {shown}; only models of one architecture and "
        "size can be merged"
    )


def check_dtypes(model: ModelFiles, first: ModelFiles, names: Sequence[str]) -> None:
    """Check that tensors can be averaged, or copied where they are integer or boolean.

    Integers are copied only where that is all the same (counters, buffers of positions): of two or
    more dimensions, or of 8 bits, they are codes of quantised weights if they differ, which mean
    nothing without scales, zero points or tables beside them.

    Raises:
        ValueError: If a model's config says that it is quantised, or a tensor holds complex or
            8-bit floating-point numbers, codes, or an integer in one model and none in the other.
    """
    refuse_quantised(model)
    scale = next((name for name in names if name.endswith(_SCALES)), None)
    if scale is not None and not torch.equal(model[scale], first[scale]):
        raise ValueError(
            f"{model.path} holds {scale!r}, which belongs to quantised weights: sums of codes and "
            "of scales are no sum of weights, so dequantise the models to bfloat16 first"
        )
    for name in names:
        dtype = model.dtype(name)
        if dtype.is_floating_point and dtype not in _AVERAGED:
            raise ValueError(
                f"{model.path} holds {name!r} as {dtype}: convert the model to bfloat16 by what "
                "quantised it, which knows the scales that belong to such numbers"
            )
        if dtype.is_complex:
            raise ValueError(
                f"{model.path} holds {name!r} as {dtype}: convert it to float32 or bfloat16 first"
            )
        if dtype.is_floating_point != first.dtype(name).is_floating_point:
            raise ValueError(
                f"{model.path} holds {name!r} as {dtype} and {first.path} as {first.dtype(name)}: "
                "quantised weights cannot be merged, convert them first"
            )
        if not dtype.is_floating_point and _are_other_codes(name, model, first):
            raise ValueError(
                f"{model.path} and {first.path} differ in {name!r}, {dtype} of the shape "
                f"{model.shape(name)}: they hold quantised weights, which cannot be merged as they "
                "are, so dequantise them to bfloat16 first, merge, and quantise the result"
            )


def refuse_quantised(model: ModelFiles) -> None:
    """Check that a model's config does not say that its weights are codes.

    Raises:
        ValueError: If it does, of the whole model or of one that is part of it.
    """
    config = model.config or {}
    for part in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        if part.get("quantization_config") or part.get("compression_config"):
            raise ValueError(
                f"{model.path} is quantised, as its config.json says: merge the models that it was "
                "made of, and quantise the result"
            )
    for name in ("quantize_config.json", "quant_config.json"):  # AutoGPTQ, AutoAWQ
        if model.folder is not None and (model.folder / name).is_file():
            raise ValueError(
                f"{model.path} is quantised, as its {name} says: merge the models that it was made "
                "of, and quantise the result"
            )


def _are_other_codes(name: str, model: ModelFiles, first: ModelFiles) -> bool:
    """Tell whether two models' integers are codes, as far as differing ones of a shape can be."""
    dtypes = {model.dtype(name), first.dtype(name)}
    wide = len(model.shape(name)) < 2 and not dtypes & {torch.int8, torch.uint8}
    if wide or model is first:
        return False
    here, there = model[name], first[name]
    return not torch.equal(here, there if len(dtypes) == 1 else there.to(here.dtype))


def refuse_infinite(models: Sequence[ModelFiles], name: str, dtype: torch.dtype) -> NoReturn:
    """Say why a merged tensor is not finite.

    Raises:
        ValueError: Always: a model's values are not finite, or the result is too large.
    """
    for model in models:
        if not all_finite(model[name]):
            raise infinite(model, name)
    raise ValueError(f"the merged {name!r} exceeds {dtype}: choose a wider out_dtype")


def infinite(model: ModelFiles, name: str) -> ValueError:
    """Return the error for a tensor that is not finite."""
    return ValueError(f"{model.path} holds NaN or infinite values in {name!r}: it cannot be merged")


def _untied(model: ModelFiles) -> ModelFiles:
    """Leave out the head of a Hugging Face model that is tied to its embeddings but stored too."""
    if model.kind != "huggingface" or not (model.config or {}).get("tie_word_embeddings"):
        return model
    copies = [
        name
        for name in model
        if name.endswith("lm_head.weight")
        and any(
            n != name and model.shape(n) == model.shape(name) and torch.equal(model[n], model[name])
            for n in model
            if _holds_tokens(n)
        )
    ]
    return model.renamed({name: name for name in model if name not in copies})


def _aligned(model: ModelFiles, reference: ModelFiles) -> ModelFiles:
    """Give a model the reference's names, as far as prefixes and tied weights stand between."""
    names = set(reference)
    if names == set(model) or model.kind == "huggingface":
        return model
    some = next(iter(reference))
    for name in model:
        prefix = name.removesuffix(some)
        if name.endswith(f".{some}") and all(f"{prefix}{n}" in model for n in names):
            inside = [n.removeprefix(prefix) for n in model if n.startswith(prefix)]
            model = model.renamed({f"{prefix}{n}": n for n in inside})
            break
    if model.kind == "lightning" and names <= set(model):
        kept = {_place(model[name]) for name in names}
        model = model.renamed({n: n for n in model if n in names or _place(model[n]) not in kept})
    return model


def _place(tensor: Tensor) -> object:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _check_names(model: ModelFiles, reference: ModelFiles) -> None:
    missing = [name for name in reference if name not in model]
    extra = [name for name in model if name not in reference]
    found = [f"it lacks {_listed(missing)}"] if missing else []
    found += [f"it also has {_listed(extra)}"] if extra else []
    if found:
        here, there = model.config or {}, reference.config or {}
        found += [line for line in config_differences(there, here) if line.startswith("tie_")]
        raise ValueError(
            f"{model.path} does not fit {reference.path}: {'; '.join(found)}; only models of one "
            "architecture can be merged"
        )


def _counts_tokens(name: str, model: ModelFiles, reference: ModelFiles) -> bool:
    """Tell whether two shapes of a tensor differ in the number of tokens alone."""
    here, there = model.shape(name), reference.shape(name)
    return _holds_tokens(name) and len(here) == len(there) > 0 and here[1:] == there[1:]


def _holds_tokens(name: str) -> bool:
    return any(part in name for part in _VOCABULARY) and not any(p in name for p in _POSITIONS)


def _listed(names: Sequence[str]) -> str:
    count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
    return f"{count} ({first_of(names, _SHOWN)})"
