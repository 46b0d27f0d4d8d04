"""A base in 4 bits, through bitsandbytes, under an adapter (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning.models.lora import LoraSettings


def four_bit_options(lora: LoraSettings | None, dtype: str | None) -> dict[str, Any]:
    """Return what ``from_pretrained`` is to be told.

    Args:
        lora: The adapter.
        dtype: What to compute in; by default bfloat16.

    Raises:
        MisconfigurationException: If there is no adapter, or one that is added to its base; or
            bitsandbytes is not installed.
    """
    if lora is None:
        raise MisconfigurationException(
            "load_in_4bit=True needs lora: quantised weights can be neither trained nor merged, "
            "only an adapter on them"
        )
    if lora.fresh_per_task:
        raise MisconfigurationException(
            "load_in_4bit=True excludes lora.fresh_per_task=True: adding an adapter to quantised "
            "weights rounds it away"
        )
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise MisconfigurationException(
            "load_in_4bit=True needs the package bitsandbytes: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype or "bfloat16"),
    )
    # a quantised model is placed when it is loaded, before the Trainer says where
    device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def prepared_for_adapter(model: nn.Module) -> nn.Module:
    """Freeze a quantised base, and have its norms and head computed in float32."""
    from peft import prepare_model_for_kbit_training

    prepared: nn.Module = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return prepared
