"""What kind of model a module holds: one of two stacks, one that predicts the next token."""

from __future__ import annotations

from typing import Any

from torch import nn

from recall_lightning.measuring.blocks import has_parameters


def is_encoder_decoder(module: nn.Module) -> bool:
    """Tell whether there is a model of two stacks inside.

    The config of a Hugging Face model says so. Where none does, and none is a causal language model
    either, it is told by two neighbours with weights that are called an encoder and a decoder.

    Example:
        >>> is_encoder_decoder(nn.Transformer(8, 2, 1, 1)), is_encoder_decoder(nn.Linear(2, 2))
        (True, False)
    """
    configs = (getattr(child, "config", None) for child in module.modules())
    if any(bool(getattr(config, "is_encoder_decoder", False)) for config in configs):
        return True
    return not _has_causal_loss(module) and any(map(_has_both_stacks, module.modules()))


def predicts_next_token(module: nn.Module) -> bool:
    """Ask a Hugging Face model which loss it computes; its default is the causal one.

    Example:
        >>> predicts_next_token(nn.Linear(2, 2))
        False
    """
    return _has_causal_loss(module) and not is_encoder_decoder(module)


def find_generator(module: nn.Module) -> Any | None:
    """Return the outermost causal language model inside that can generate, or None.

    The decoder of two stacks is none: without its encoder it writes nothing of what it knows.

    Example:
        >>> find_generator(nn.Linear(2, 2)) is None
        True
    """
    if is_encoder_decoder(module):
        return None
    for child in module.modules():
        config: Any = getattr(child, "config", None)
        able = getattr(child, "can_generate", None)
        if callable(able) and able() and getattr(config, "vocab_size", None):
            return child
    return None


def _has_causal_loss(module: nn.Module) -> bool:
    for child in module.modules():
        if hasattr(child, "loss_type") and hasattr(child, "config"):
            if child.loss_type is None:
                return bool(getattr(child, "can_generate", bool)())
            return child.loss_type in ("ForCausalLM", "ForConditionalGeneration")
    return False


def _has_both_stacks(parent: nn.Module) -> bool:
    names = [name for name, child in parent.named_children() if has_parameters(child)]
    return all(any(stack in name for name in names) for stack in ("encoder", "decoder"))
