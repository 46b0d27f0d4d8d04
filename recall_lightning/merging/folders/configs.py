"""What two config.json say that makes the same weights another function."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

# Names, dtypes, and what concerns how a model is trained, run or asked, not what it computes.
_NO_MATTER = re.compile(
    r"_?name_or_path|transformers_version|(torch_)?dtype|architectures|auto_map|_commit_hash"
    r"|_?attn_implementation\w*|use_cache|use_flash\w*|gradient_checkpointing|torchscript"
    r"|output_attentions|output_hidden_states|output_router_logits|return_dict|use_return_dict"
    r"|chunk_size_feed_forward|pretraining_tp|initializer_\w+|init_std|\w*dropout|\w*pdrop"
    r"|\w*aux_loss_coef|(bos|eos|pad)_token_id|label2id|problem_type|finetuning_task|unsloth_\w+"
    r"|task_specific_params|quantization_config|cache_implementation|max_length|min_length"
    r"|do_sample|early_stopping|num_beams|temperature|top_k|top_p|repetition_penalty"
)


def config_differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the fields of two configs that differ and matter, with both values.

    A field that is left out has its default, and the older and newer forms of rotary embeddings
    (``rope_theta`` and ``rope_scaling``, ``rope_parameters``) are one. Defaults are those of
    transformers, to which a text in a field that it does not know is a note; of a ``model_type``
    that it does not know, no field has a default.

    Args:
        first: A config.json.
        other: Another.

    Example:
        >>> one = {"model_type": "llama", "rope_theta": 10000, "torch_dtype": "float16"}
        >>> config_differences(one, {"model_type": "llama", "rms_norm_eps": 1e-06})
        []
        >>> config_differences(one, {"model_type": "llama", "rope_scaling": {"rope_theta": 5e5}})
        ['rope_parameters.rope_theta is 500000.0 and not 10000']
    """
    differing = _differences(_mattering(first), _mattering(other))
    kind = first.get("model_type")
    if differing and kind == other.get("model_type"):
        # defaults need transformers, which takes a while to import
        complete, others = _with_defaults(first), _with_defaults(other)
        if complete is not None and others is not None:
            differing = _differences(_mattering(complete), _mattering(others))
    return differing


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fill in what a config leaves out; None where transformers does not know how."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return None
    own = deepcopy(dict(config))  # from_dict writes into it
    try:
        complete: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(own).to_dict()
        known = CONFIG_MAPPING[kind]().to_dict()
    except Exception:  # each architecture checks its fields in ways of its own
        return None
    return {k: v for k, v in complete.items() if k in known or not isinstance(v, str)}


def _mattering(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a config, and those of its parts, to what matters, in one form."""
    kept = {
        str(key): _mattering(value)
        if isinstance(value, Mapping) and not str(key).startswith("rope_")
        else value
        for key, value in config.items()
        if value is not None and not _NO_MATTER.fullmatch(str(key))
    }
    labels = kept.get("id2label")
    if isinstance(labels, Mapping) and all(str(v) == f"LABEL_{k}" for k, v in labels.items()):
        del kept["id2label"]  # nobody has named them
    _unite_rope(kept)
    heads, width = kept.get("num_attention_heads"), kept.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        kept.setdefault("head_dim", width // heads)
        kept.setdefault("num_key_value_heads", heads)
    return kept


def _unite_rope(config: dict[str, Any]) -> None:
    """Bring what is said of rotary embeddings into one mapping, as transformers 5 writes it."""
    parts = [config.pop(key, {}) for key in ("rope_scaling", "rope_parameters")]
    united = {
        key: value
        for part in parts
        if isinstance(part, Mapping)
        for key, value in part.items()
        if value is not None
    }
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in config:
            united.setdefault(key, config.pop(key))
    if not united:
        return
    if not any(isinstance(value, Mapping) for value in united.values()):  # not one a kind of layer
        kind = united.pop("type", "default")
        united.setdefault("rope_type", kind)
    config["rope_parameters"] = united


def _differences(first: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys([*first, *other])
        return [
            line
            for key in keys
            for line in _differences(
                first.get(key), other.get(key), f"{path}.{key}" if path else key
            )
        ]
    if first == other:
        return []
    return [f"{path} is {_shown(other)} and not {_shown(first)}"]


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
