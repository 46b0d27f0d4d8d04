"""Weights in a file of GGUF, as llama.cpp has them, unpacked to be trained."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException


def gguf_options(model: Any, gguf_file: str, load_in_4bit: bool) -> dict[str, Any]:
    """Return what ``from_pretrained`` is to be told.

    Args:
        model: What the module was given for a model.
        gguf_file: Name of the file in that folder or repository.
        load_in_4bit: Whether the base is to be kept in 4 bits of another kind.

    Raises:
        MisconfigurationException: If there is no folder that the file could be in, it is asked for
            in 4 bits, or the package that reads it is not installed.
    """
    if not isinstance(model, str):
        raise MisconfigurationException(
            f"gguf_file={gguf_file!r} is a file of weights, and model={model!r} asks for random "
            "ones: give the folder or hub id that holds it as model"
        )
    if load_in_4bit:
        raise MisconfigurationException(
            f"load_in_4bit=True excludes gguf_file={gguf_file!r}: its weights are unpacked, and "
            "would be quantised once more, in another way; take the model that it was made of"
        )
    if find_spec("gguf") is None:
        raise MisconfigurationException(
            f"gguf_file={gguf_file!r} is read by the package gguf: pip install "
            "recall-lightning[gguf]"
        )
    import transformers

    packed = getattr(transformers, "GgufConfig", None)  # of versions that leave weights packed
    config = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    return {"gguf_file": gguf_file} | config
