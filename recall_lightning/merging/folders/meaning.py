"""Whether models of the same shapes mean the same by them: their configs and their tokenizers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recall_lightning.checks import first_of
from recall_lightning.merging.folders.configs import config_differences
from recall_lightning.merging.folders.vocabularies import Vocabulary
from recall_lightning.weights.paths import file_inside
from recall_lightning.weights.reading import ModelFiles, optional_json

_SHOWN = 3
_INSIST = "--allow-different-configs (allow_different_configs) insists"


def check_meanings(models: Iterable[ModelFiles], united: bool = False) -> None:
    """Check that what models say of themselves, beside their weights, agrees.

    Each one's config is compared with that of the first that has one, and likewise the tokenizer:
    numbers of heads, rotary embeddings, activations, norms' epsilons and labels have no trace in
    shapes, nor has which row of the embeddings is which token's.

    Args:
        models: Under the same names.
        united: Whether their vocabularies have been made one, so that they may differ.

    Raises:
        ValueError: If a config or tokenizer differs in what matters; it says how.
    """
    first: tuple[ModelFiles, Mapping[str, Any]] | None = None
    words: tuple[ModelFiles, Vocabulary] | None = None
    for model in models:
        config = _config_of(model)
        if config is not None:
            first = first or (model, config)
            _check_configs(model, config, *first, united)
        vocabulary = None if united else _vocabulary_of(model)
        if vocabulary is not None:
            words = words or (model, vocabulary)
            _check_vocabularies(model, vocabulary, *words)


def _check_configs(
    model: ModelFiles,
    config: Mapping[str, Any],
    first: ModelFiles,
    wanted: Mapping[str, Any],
    united: bool,
) -> None:
    found = config_differences(wanted, config)
    found = [line for line in found if not (united and "vocab_size is" in line)]
    if not found and "auto_map" in config:  # a model that brings its own code
        found = [f"their {name} differ" for name in _differing_code(model.folder, first.folder)]
    if found:
        raise ValueError(
            f"{model.path} and {first.path} have the same shapes and compute differently: "
            f"{first_of(found, _SHOWN)}; merge models of one configuration, or {_INSIST}"
        )


def _differing_code(here: Path | None, there: Path | None) -> list[str]:
    if here is None or there is None:
        return []
    names = [file.name for file in sorted(here.glob("*.py")) if (there / file.name).is_file()]
    return [
        name
        for name in names
        if file_inside(here, name).read_bytes() != file_inside(there, name).read_bytes()
    ]


def _check_vocabularies(
    model: ModelFiles, vocabulary: Vocabulary, first: ModelFiles, wanted: Vocabulary
) -> None:
    found = wanted.difference(vocabulary)
    if found:
        raise ValueError(
            f"{model.path} and {first.path} read text differently: {found}; give models of one "
            f"tokenizer, move rows with --tokenizer union, or {_INSIST}"
        )


def _config_of(model: ModelFiles) -> Mapping[str, Any] | None:
    """Return a model's config, or that of what it was trained from, where that is still there."""
    if model.config is not None:
        return model.config
    about = _about(model)
    if isinstance(about.get("config"), Mapping):
        return dict(about["config"])
    if isinstance(about.get("model"), Mapping):  # an older checkpoint, from random weights
        return dict(about["model"])
    source = about.get("model") or (model.adapter_config or {}).get("base_model_name_or_path")
    return optional_json(_beside(model) or _existing(source), "config.json")


def tokenizer_folder(model: ModelFiles) -> Path | None:
    """Return where a model's tokenizer lies; None where nothing says."""
    return model.folder or _beside(model) or _existing(_about(model).get("tokenizer"))


def _vocabulary_of(model: ModelFiles) -> Vocabulary | None:
    folder = tokenizer_folder(model)
    return None if folder is None else Vocabulary.read(folder)


def _about(model: ModelFiles) -> Mapping[str, Any]:
    """Return what a checkpoint of :class:`~recall_lightning.models.CausalLMModule` says of it."""
    about = model.beside.get("causal_lm")
    return about if isinstance(about, Mapping) else {}


def _beside(model: ModelFiles) -> Path | None:
    """Return the folder of a single file that is a folder's model."""
    single = model.folder is None and model.path.name == "model.safetensors"
    return model.path.parent if single else None


def _existing(path: object) -> Path | None:
    return Path(path) if isinstance(path, str) and Path(path).is_dir() else None
