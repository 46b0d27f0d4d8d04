"""An adapter written into the base it was trained on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


def merged_into_base(model: PeftModel) -> nn.Module:
    """Add an adapter's updates to its base, and put the modules that were trained as a whole in.

    A weight that two layers share and one of them has an update or a copy of its own for, as a head
    that is tied to the embeddings may, is one no longer: the other layer stays as it was in
    training. A model whose head is then its own says so in its config.

    Args:
        model: With one LoRA adapter; it is used up.

    Returns:
        The base model.
    """
    from peft.tuners.lora import LoraLayer

    users = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            own: Any = layer.get_base_layer()
            if users[id(own.weight)] > 1:
                own.weight = nn.Parameter(own.weight.detach().clone(), own.weight.requires_grad)
    merged: nn.Module = model.merge_and_unload()
    _untie(merged)
    return merged


def _untie(model: Any) -> None:
    """Have a model's config and bookkeeping tie those weights only that are one.

    Newer versions of PEFT do so for the config.
    """
    tied = getattr(model, "all_tied_weights_keys", {})
    apart = [
        name
        for name, source in tied.items()
        if model.get_parameter(name) is not model.get_parameter(source)
    ]
    if not apart:
        return
    model.all_tied_weights_keys = {k: v for k, v in tied.items() if k not in apart}
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
