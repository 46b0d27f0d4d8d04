"""How the modules come by their transformer and their optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


def build_transformer(
    head: Literal["CausalLM", "ImageClassification"], model: str | Mapping[str, Any], **kwargs: Any
) -> nn.Module:
    """A Hugging Face model in training mode: pre-trained from a name, or random from a config.

    Args:
        head: What the model is for, as in ``AutoModelFor<head>``.
        model: Folder or hub id of a pre-trained model, or the fields of a config, ``model_type``
            among them.
        **kwargs: Further config fields, or further arguments of ``from_pretrained``.

    Raises:
        MisconfigurationException: If the model cannot be loaded, the mapping has no known
            ``model_type`` or a field that this type does not have.
    """
    import transformers  # heavy

    auto_model = getattr(transformers, f"AutoModelFor{head}")
    if isinstance(model, str):
        folder = Path(model)
        # or the hub would be asked for it, again and again
        is_path = folder.is_absolute() or len(folder.parts) > 2 or model.startswith(".")
        if is_path and not folder.exists():
            raise MisconfigurationException(
                f"model={model!r} is no folder, seen from {Path.cwd()}: give the path of one that "
                "save_pretrained wrote, or a hub id, such as owner/name"
            )
        try:
            # from_pretrained returns a model in evaluation mode, and Lightning would leave it so.
            return auto_model.from_pretrained(model, **kwargs).train()
        except (OSError, ValueError) as error:
            there = "" if folder.exists() else f" is no folder, seen from {Path.cwd()}, and"
            raise MisconfigurationException(
                f"model={model!r}{there} cannot be loaded as AutoModelFor{head} "
                f"({_first_line(error)}): give a folder that save_pretrained wrote, a hub id "
                "(where there is no network, a local folder), or a mapping with model_type and "
                "config fields"
            ) from error

    fields = {**model, **kwargs}
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise MisconfigurationException(
            f"model={dict(model)} has no model_type. Name one that transformers knows, such as"
            " model_type: llama."
        )
    try:
        defaults = transformers.AutoConfig.for_model(model_type)
        # A config takes any field, so a misspelled size would pass and leave a default of billions.
        unknown = [field for field in fields if not hasattr(defaults, field)]
        if unknown:
            raise MisconfigurationException(
                f"model_type={model_type!r} has no fields {unknown}: drop them, or correct their "
                "names."
            )
        config = transformers.AutoConfig.for_model(model_type, **fields)
        return auto_model.from_config(config).train()
    except ValueError as error:
        raise MisconfigurationException(
            f"model_type={model_type!r} cannot be built as AutoModelFor{head} ({error}): name "
            "another type, or other fields"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def build_optimizer(
    module: LightningModule,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
    decay_norms_and_biases: bool = True,
) -> Any:
    """What ``configure_optimizers`` returns: the optimizer of what is trainable, and its schedule.

    Args:
        module: The module to train.
        optimizer: Makes an optimizer of parameters.
        lr_scheduler: Makes a scheduler, which steps once an epoch, of the optimizer.
        decay_norms_and_biases: Whether weight decay acts on parameters of one axis too.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: Any = trained
    flat = [parameter for parameter in trained if parameter.dim() < 2]
    if flat and not decay_norms_and_biases:
        others = [parameter for parameter in trained if parameter.dim() > 1]
        groups = [{"params": others}, {"params": flat, "weight_decay": 0.0}]
    built = optimizer(groups)
    return LightningCLI.configure_optimizers(module, built, lr_scheduler and lr_scheduler(built))
