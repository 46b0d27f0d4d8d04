"""Whether models of the same shapes mean the same by them: their configs and their tokenizers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recall_lightning.merging.folders.configs import config_differences
from recall_lightning.merging.folders.vocabularies import Vocabulary
from recall_lightning.weights.reading import ModelFiles, optional_json

_SHOWN = 3
_INSIST = "--allow-different-configs (allow_different_configs) insists"


def check_meanings(models: Iterable[ModelFiles]) -> None:
    """Check that what models say of themselves, beside their weights, agrees.

    Each one's config is compared with that of the first that has one, and likewise the tokenizer:
    numbers of heads, rotary embeddings, activations, norms' epsilons and labels have no trace in
    shapes, nor has which row of the embeddings is which token's.

    Raises:
        ValueError: If a config or tokenizer differs in what matters; it says how.
    """
    first: tuple[ModelFiles, Mapping[str, Any]] | None = None
    words: tuple[ModelFiles, Vocabulary] | None = None
    for model in models:
        config = _config_of(model)
        if config is not None:
            first = first or (model, config)
            _check_configs(model, config, *first)
        vocabulary = _vocabulary_of(model)
        if vocabulary is not None:
            words = words or (model, vocabulary)
            _check_vocabularies(model, vocabulary, *words)


def _check_configs(
    model: ModelFiles, config: Mapping[str, Any], first: ModelFiles, wanted: Mapping[str, Any]
) -> None:
    found = config_differences(wanted, config)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"{model.path} and {first.path} have the same shapes and compute differently: "
            f"{', '.join(found[:_SHOWN])}{more}; merge models of one configuration, or {_INSIST}"
        )


def _check_vocabularies(
    model: ModelFiles, vocabulary: Vocabulary, first: ModelFiles, wanted: Vocabulary
) -> None:
    found = wanted.difference(vocabulary)
    if found:
        raise ValueError(
            f"{model.path} and {first.path} read text differently: {found}; give models of one "
            f"tokenizer, or {_INSIST}"
        )


def _folder_of(model: ModelFiles) -> Path | None:
    """Return where a model's config and tokenizer lie: a single file's, where it is a folder's."""
    if model.folder is None and model.path.name == "model.safetensors":
        return model.path.parent
    return model.folder


def _config_of(model: ModelFiles) -> Mapping[str, Any] | None:
    about = model.beside.get("causal_lm")
    built_from = about.get("model") if isinstance(about, Mapping) else None
    if isinstance(built_from, Mapping):  # a checkpoint of a model from random weights
        return built_from
    return optional_json(_folder_of(model), "config.json") if model.config is None else model.config


def _vocabulary_of(model: ModelFiles) -> Vocabulary | None:
    folder = _folder_of(model)
    return None if folder is None else Vocabulary.read(folder)
