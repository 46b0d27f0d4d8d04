"""LoRA adapters on a Hugging Face model, through PEFT."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class LoraSettings:
    """An adapter, and what becomes of it at a task's end.

    Args:
        r: Rank.
        alpha: ΔW is scaled by alpha / r.
        dropout: Of the adapter's inputs.
        target_modules: Names of the layers to adapt, ``"all-linear"`` for every linear layer but
            the head, or None for what PEFT knows to be usual.
        modules_to_save: Names of modules to train as a whole, merged as plain weights.
        fresh_per_task: Whether a task's adapter is added to the base at the task's end and a new
            one started, instead of one adapter for the whole stream. The base then changes, and
            checkpoints hold it.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    fresh_per_task: bool = False


def with_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Freeze a model and put an adapter on it.

    Raises:
        MisconfigurationException: If PEFT is not installed or finds no layer of these names, or a
            task's adapter would be added to a weight that another layer shares.
    """
    try:
        import peft
    except ImportError as error:
        raise MisconfigurationException(
            "lora needs the package peft: pip install recall-lightning[lora]"
        ) from error
    options = asdict(settings)
    options.pop("fresh_per_task")
    try:
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=options.pop("r"),
            lora_alpha=options.pop("alpha"),
            lora_dropout=options.pop("dropout"),
            **options,
        )
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise MisconfigurationException(
            f"lora={settings} does not fit the model ({error}): change its target_modules or rank"
        ) from error
    if settings.fresh_per_task:
        _refuse_shared_bases(adapted)
    return adapted


def _refuse_shared_bases(adapted: PeftModel) -> None:
    """Check that adding an adapter to its layers' weights changes no other layer.

    Raises:
        MisconfigurationException: If it does, as with a head that is tied to the embeddings.
    """
    from peft.tuners.lora import LoraLayer

    users = Counter(id(weight) for _, weight in adapted.named_parameters(remove_duplicate=False))
    for name, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and users[id(layer.get_base_layer().weight)] > 1:
            raise MisconfigurationException(
                f"lora.fresh_per_task=True adds each task's adapter to the weight of {name!r}, "
                "which is tied to another layer's, so that would change too: leave it out of "
                "target_modules, or take a model whose config.json does not tie them"
            )
