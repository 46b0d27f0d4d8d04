"""LoRA layers of PEFT in a live model."""

from typing import Any

from torch import nn

from recall_lightning.weights.sharding import agree


def add_to_base(model: nn.Module) -> list[nn.Parameter]:
    """Add every adapter's update to its layer's weight, and start a new one that adds nothing.

    Its random factor is the first process's on all of them; every process must call.

    Args:
        model: A model with PEFT's LoRA layers in it.

    Returns:
        The parameters that have started anew.

    Raises:
        ValueError: If an update holds a NaN or an infinity; nothing has been changed then.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    adapters = [(layer, adapter) for layer in layers for adapter in layer.lora_A]
    for layer, adapter in adapters:
        if not layer.get_delta_weight(adapter).isfinite().all():
            raise ValueError(f"the update of the adapter {adapter!r} must be finite")
    restarted: list[nn.Parameter] = []
    for layer, adapter in adapters:
        layer.merge(adapter_names=[adapter])
        layer.merged_adapters.clear()
        layer.reset_lora_parameters(adapter, True)
        restarted += [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
    for factor in restarted:
        agree(factor)
    return restarted
