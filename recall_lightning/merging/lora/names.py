"""How tensors of adapters are called: what tells an adapter's file from a model's."""

import re
from collections.abc import Iterable

# A part of a name that begins like this is of an adapter: PEFT's prefixes
# (peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING), without those that layers of models begin with too.
_PREFIXES = (
    "adaption_gate",
    "adaption_prompt",
    "beft_",
    "boft_",
    "c3a_",
    "delora_",
    "fourierft_",
    "glora_",
    "gralora_",
    "hada_",
    "hira_",
    "hra_",
    "ia3_",
    "ln_tuning_layers",
    "lokr_",
    "miss_block",
    "oft_",
    "poly_lora_",
    "psoft_",
    "pvera_",
    "randlora_",
    "road_alpha",
    "road_theta",
    "shira_",
    "tinylora_",
    "trainable_tokens_",
    "unilora_",
    "vblora_",
    "vera_A",
    "vera_B",
    "vera_lambda",
    "waveft_",
)
# those of AdaLoRA, DoRA, loralib and torchtune as well, and of kohya for diffusion models
_LORA = (
    r"lora_(?:(?:[A-Ea-e]|up|down|mid|embedding_[AB]|magnitude_vector|diag)(?:\.|$)|unet_|te\d?_)"
)
_PART = re.compile(rf"(?:^|\.)(?:{_LORA}|{'|'.join(_PREFIXES)})")
_WHOLE = ("prompt_embeddings", "past_key_values")  # of prompts, which stand alone


def adapter_tensor(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor that belongs to an adapter, by PEFT's names and others'.

    Example:
        >>> adapter_tensor(["h.0.q.base_layer.weight", "h.0.q.lora_A.default.weight"])
        'h.0.q.lora_A.default.weight'
        >>> adapter_tensor(["attention.w_lora.lora.0.weight", "explorer_a.weight"])
    """
    return next((name for name in names if _PART.search(name) or name in _WHOLE), None)
