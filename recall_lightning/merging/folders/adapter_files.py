"""Adapters wherever they are kept, told by what a file holds and read as PEFT's folders are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recall_lightning.merging.lora.names import adapter_tensor
from recall_lightning.weights.naming import canonical_name
from recall_lightning.weights.reading import ModelFiles

_ADAPTER = "default"  # what PEFT calls the one adapter of a model
_PART_OF_BASE = re.compile(r"\.(base_layer|original_module)\.")


def as_adapter(model: ModelFiles) -> ModelFiles:
    """Return a model that holds an adapter as one of the kind ``"adapter"``; any other as it is.

    A checkpoint of :class:`~recall_lightning.models.CausalLMModule` that holds an adapter alone
    says its rank and alpha: it gets the ``adapter_config.json`` and the names that its export has.

    Raises:
        ValueError: If it holds factors without what tells their scale, or beside their base: A and
            B mean their product, which no sum of the factors gives.
    """
    if model.kind == "adapter":
        return model
    found = adapter_tensor(model)
    if found is None:
        return model
    about = model.beside.get("causal_lm")
    lora = about.get("lora") if isinstance(about, Mapping) else None
    if isinstance(about, Mapping) and isinstance(lora, Mapping):
        return _of_checkpoint(model, about, lora)
    whole = next((name for name in model if _PART_OF_BASE.search(name)), None)
    beside = model.path.parent / "adapter_config.json"
    first = ""
    if model.kind != "safetensors" or not beside.is_file():
        first = (
            "merge it into its base by PEFT's merge_and_unload and save that, or save the adapter "
            if whole
            else "save it "
        ) + "by PEFT's save_pretrained and "
    raise ValueError(
        f"{model.path} holds an adapter, such as {found!r}, whose factors are merged as the update "
        f"that they stand for, and nothing in it tells its scale: {first}give its folder"
    )


def _of_checkpoint(
    model: ModelFiles, about: Mapping[str, Any], lora: Mapping[str, Any]
) -> ModelFiles:
    """Read a checkpoint's adapter as its exported folder would be read."""
    export = f"recall-lightning export {model.path} --out DIR"
    if lora.get("fresh_per_task") or "base" not in about:
        raise ValueError(
            f"{model.path} holds an adapter and the base that it was trained on, which is nowhere "
            f"else: {export} --merge-adapter makes a model of them, which can be merged"
        )
    names = {name: _exported_name(name) for name in model}
    source = str(about.get("model"))
    found = model.renamed(names)
    found.kind = "adapter"
    found.adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": (
            str(Path(source).resolve()) if Path(source).is_dir() else source
        ),
        "r": lora.get("r"),
        "lora_alpha": lora.get("alpha"),
        "lora_dropout": lora.get("dropout", 0.0),
        "target_modules": lora.get("target_modules"),
        "modules_to_save": lora.get("modules_to_save"),
        "bias": "none",
        "inference_mode": True,
    }
    return found


def _exported_name(name: str) -> str:
    """Return what PEFT calls a checkpoint's tensor in a file: without the adapter's own name."""
    name = canonical_name(name).removeprefix("model.")
    name = name.replace(f".modules_to_save.{_ADAPTER}.", ".")
    return re.sub(rf"(\.lora_\w+)\.{_ADAPTER}(?=\.|$)", r"\1", name)
