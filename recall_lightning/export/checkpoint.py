"""A checkpoint of :class:`~recall_lightning.models.CausalLMModule`, and the model that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings
from recall_lightning.weights.lightning_checkpoint import read_checkpoint
from recall_lightning.weights.snapshot import frozen_digest

_NEEDED = ("model", "lora", "tokenizer", "tasks", "dtype", "reads_old_data")


def read_language_model(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code that it may hold.

    Raises:
        ValueError: If it is no file, cannot be read, or holds no
            :class:`~recall_lightning.models.CausalLMModule`.
    """
    if (path / "config.json").is_file():
        raise ValueError(f"{path} is a folder of Hugging Face already: give a Lightning checkpoint")
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint.get("causal_lm"), Mapping):
        raise ValueError(
            f"{path} holds no CausalLMModule of recall_lightning, and only such a model is "
            "exported: load others by their class's load_from_checkpoint"
        )
    about = checkpoint["causal_lm"]
    lacking = [name for name in _NEEDED if name not in about]
    if lacking or not isinstance(about["lora"], Mapping | None):
        raise ValueError(
            f"{path} does not say how its model is built ({', '.join(lacking) or 'lora'}): save it "
            "again by the Trainer that trains it"
        )
    return checkpoint


def build_model(
    checkpoint: Mapping[str, Any], model: str | None = None, trust_remote_code: bool = False
) -> CausalLMModule:
    """Build the module that a checkpoint holds, with its weights in the precision they have there.

    Args:
        checkpoint: What :func:`read_language_model` returned.
        model: Where the pre-trained model is now, if not where it was.
        trust_remote_code: Whether it may run code of its own.

    Raises:
        ValueError: If the model cannot be loaded, or is another one than was trained.
    """
    about = checkpoint["causal_lm"]
    try:
        lora = None if about["lora"] is None else LoraSettings(**about["lora"])
    except TypeError as error:
        raise ValueError(
            f"the checkpoint's adapter has settings of another kind ({error}): export it with the "
            "version that wrote it"
        ) from error
    try:
        module = CausalLMModule(
            model or about["model"],
            dtype=about["dtype"],
            lora=lora,
            trust_remote_code=trust_remote_code,
            gguf_file=about.get("gguf_file"),
        )
        if about.get("load_in_4bit"):  # the base is another precision's now, by intention
            about = about | {"base": frozen_digest(module)}
        module.on_load_checkpoint({**checkpoint, "causal_lm": about})
    except MisconfigurationException as error:
        raise ValueError(
            f"the checkpoint's model was not built ({error}): tell by --model where it is"
        ) from error
    state = {name.replace("._orig_mod", ""): t for name, t in checkpoint["state_dict"].items()}
    tied = _tied(module)
    try:
        module.load_state_dict(state, assign=True)  # in the precision of the checkpoint
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint does not fit {about['model']!r} ({error}): tell by --model what it "
            "was trained from"
        ) from error
    for name, first in tied.items():  # what was one parameter in training is one again
        layer, _, own = name.rpartition(".")
        setattr(module.get_submodule(layer), own, module.get_parameter(first))
    module.model.config.use_cache = True  # gradient checkpointing had it off
    return module.eval()


def _tied(module: nn.Module) -> dict[str, str]:
    """Map each further name of a parameter to its first."""
    first: dict[int, str] = {}
    names = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    return {name: kept for name, kept in names.items() if name != kept}
