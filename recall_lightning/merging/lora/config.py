"""Configurations of LoRA adapters: what one says about the updates, and the one of a merge."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Initialisations that leave the base weights as they are; all others start from a base of their own
# or train something else than B A.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_REFUSED = {
    "use_dora": "DoRA's magnitudes make the update more than B A",
    "lora_bias": "a bias of B is no part of B A",
    "use_qalora": "QA-LoRA pools the inputs of a quantised base",
    "alora_invocation_tokens": "aLoRA applies the update to some tokens only",
    "arrow_config": "Arrow routes between several adapters",
    "use_bdlora": "BD-LoRA's factors are block-diagonal, and those of a merge are not",
    "kasa_config": "KaSA changes the base weights",
    "monteclora_config": "MonteCLoRA's factors are samples",
    "velora_config": "VeLoRA has a backward pass of its own",
    "megatron_config": "Megatron's layers hold slices of the factors",
    "layer_replication": "the adapter belongs to a model with repeated layers",
    "trainable_token_indices": "trained token rows are no update B A",
    "target_parameters": "factors of bare parameters stack several updates",
    "ensure_weight_tying": "factors that two layers share would be merged twice",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says about its updates.

    Attributes:
        r: Rank of every module without one of its own.
        lora_alpha: Likewise alpha.
        use_rslora: Whether the scale is alpha / √rank (arXiv 2312.03732) instead of alpha / rank.
        rank_pattern: Pattern of module names to their rank.
        alpha_pattern: Likewise alpha.

    Example:
        >>> config = AdapterConfig(r=4, lora_alpha=8, rank_pattern={"layers.0.q_proj": 16})
        >>> config.scale("model.layers.0.q_proj"), config.scale("model.layers.1.q_proj")
        (0.5, 2.0)
    """

    r: int
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Any, where: str = "adapter_config.json") -> "AdapterConfig":
        """Read a configuration and check that its adapter is one that can be merged.

        Args:
            config: What ``adapter_config.json`` holds, or a ``peft.LoraConfig``.
            where: What an error calls it.

        Raises:
            ValueError: If rank or alpha is missing or no positive number, patterns or names of
                modules are none, or the adapter is no plain LoRA adapter: it names the setting and
                why its updates cannot be merged.
        """
        settings = _as_json(config)
        _refuse_variants(settings, where)
        ranks = _patterns(settings, "rank_pattern", where)
        for value in (settings.get("r"), *ranks.values()):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{where}: the rank r={value!r} must be a positive integer")
        alphas = _patterns(settings, "alpha_pattern", where)
        for value in (settings.get("lora_alpha"), *alphas.values()):
            if not isinstance(value, int | float):
                raise ValueError(f"{where}: lora_alpha={value!r} must be a number")
        saved = settings.get("modules_to_save") or []
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise ValueError(f"{where}: modules_to_save={saved!r} must be a list of names")
        rslora = bool(settings.get("use_rslora"))
        return cls(settings["r"], settings["lora_alpha"], rslora, ranks, alphas)

    def rank(self, module: str) -> int:
        """Return the rank of a module, called by its name in the base model."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Return what multiplies B A in a module."""
        rank = self.rank(module)
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha) / (
            rank**0.5 if self.use_rslora else rank
        )


def merged_adapter_config(configs: Sequence[Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    r"""Return the ``adapter_config.json`` of merged factors whose scale is 1.

    Everything but ranks, scales and the choice of modules is the first configuration's.

    Args:
        configs: Those of the merged adapters: what ``adapter_config.json`` holds, or LoraConfigs.
        ranks: Module name (without ``base_model.model.``) to the rank of its merged factors.

    Raises:
        ValueError: If there is no configuration or module, one is not of a plain LoRA adapter, or
            they save different whole modules.

    Example:
        >>> config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
        >>> merged = merged_adapter_config([config, config], {"0.q": 8, "1.q": 8, "2.q": 6})
        >>> merged["r"], merged["lora_alpha"], merged["rank_pattern"], merged["alpha_pattern"]
        (8, 8, {'^2\\.q': 6}, {'^2\\.q': 6})
    """
    if not configs or not ranks:
        raise ValueError("there must be an adapter to merge, and a module that it adapts")
    sources = [_as_json(config) for config in configs]
    for index, source in enumerate(sources):
        AdapterConfig.read(source, f"adapter {index}")
        saved, first = (set(s.get("modules_to_save") or ()) for s in (source, sources[0]))
        if saved != first:
            raise ValueError(
                f"adapter {index} saves the modules {sorted(saved)} as a whole and adapter 0 "
                f"{sorted(first)}: they can be merged only where all have them"
            )
    rank = Counter(ranks.values()).most_common(1)[0][0]
    own = {f"^{re.escape(module)}": r for module, r in ranks.items() if r != rank}
    merged = sources[0] | {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": own,
        "alpha_pattern": dict(own),
        "use_rslora": False,
        "init_lora_weights": True,
        "eva_config": None,
    }
    choice = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    if any(s.get(key) != sources[0].get(key) for s in sources for key in choice):
        merged |= dict.fromkeys(choice) | {"target_modules": sorted(ranks)}
    return merged


def _as_json(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON would hold it: sets sorted to lists."""
    settings = dict(config) if isinstance(config, Mapping) else config.to_dict()
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(key), list | set | tuple):
            settings[key] = sorted(settings[key], key=str)
    return settings


def _patterns(settings: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    patterns = settings.get(name) or {}
    try:
        for pattern in dict(patterns):
            re.compile(pattern)
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {name}={patterns!r} must map patterns of module names to numbers"
        ) from error
    return dict(patterns)


def _refuse_variants(settings: Mapping[str, Any], where: str) -> None:
    kind = settings.get("peft_type")
    if str(getattr(kind, "value", kind)).upper() != "LORA":
        raise ValueError(f"{where}: peft_type={kind!r} must be LORA to be merged")
    for name, reason in _REFUSED.items():
        if settings.get(name):
            raise ValueError(
                f"{where}: {name}={settings[name]!r} cannot be merged ({reason}): train without it"
            )
    if settings.get("bias") not in (None, "none"):
        raise ValueError(
            f"{where}: bias={settings['bias']!r} cannot be merged: trained biases are no update B A"
        )
    start = settings.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_INITIALISATIONS:
        raise ValueError(
            f"{where}: init_lora_weights={start!r} cannot be merged: such an adapter may belong to "
            "changed base weights; save it with PEFT's path_initial_model_for_weight_conversion"
        )


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Look a module up as PEFT does: the first pattern that its name's end matches counts."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return patterns.get(module, default)
