"""A trained language model as a folder that ``from_pretrained`` loads."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.tokenizers import tokenizer_on_disk
from recall_lightning.export.card import Training, model_card
from recall_lightning.export.checkpoint import build_model, read_language_model
from recall_lightning.export.comparison import Comparison, refuse_infinite_weights
from recall_lightning.export.merging import merged_into_base
from recall_lightning.weights.atomic import atomic_folder, refuse_existing

if TYPE_CHECKING:
    from peft import PeftModel


def export(
    checkpoint: str | Path,
    out: str | Path,
    merge_adapter: bool = False,
    model: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> Training:
    """Write the language model of a checkpoint as a folder of Hugging Face.

    It holds the weights, whose logits are those of the checkpoint's model, its config and
    generation config, the tokenizer, a model card (``README.md``) with the stream, the method, the
    task matrix and the merge coefficients, and the run's ``config.yaml`` if that is beside the
    checkpoint. The folder appears whole or not at all: it is loaded first, and must have the
    checkpoint's logits on a batch up to the rounding of its weights.

    Args:
        checkpoint: A checkpoint file of :class:`~recall_lightning.models.CausalLMModule`.
        out: The folder to make.
        merge_adapter: Whether to write a LoRA adapter into its base; otherwise it is written alone,
            as PEFT's adapters are. One that was trained on a base in 4 bits is written into the
            base as it was before that, whose logits differ a little.
        model: Where the pre-trained model is now, if not where it was.
        tokenizer: The same for the tokenizer.
        trust_remote_code: Whether model and tokenizer may run code of their own.

    Returns:
        What the card says of the training.

    Raises:
        ValueError: If ``out`` exists, the checkpoint is none of such a module or holds values that
            are not finite, what it was trained on is not found, or what was written is another
            model.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    refuse_existing(out)
    read = read_language_model(checkpoint)
    lora = read["causal_lm"]["lora"]
    if merge_adapter and lora is None:
        raise ValueError(
            "the checkpoint holds no adapter, but a whole model: leave --merge-adapter out"
        )
    if lora is not None and not merge_adapter:
        if lora.get("fresh_per_task"):
            raise ValueError(
                "each task's adapter was added to the base, which an adapter alone would leave "
                "out: give --merge-adapter"
            )
        if "base" not in read["causal_lm"]:
            raise ValueError(
                "the adapter's base had random weights and is nowhere else: give --merge-adapter"
            )
        if read["causal_lm"].get("gguf_file") is not None:
            raise ValueError(
                "the adapter's base is a file of GGUF, of which PEFT cannot be told: give "
                "--merge-adapter"
            )
    training = Training.of(read)
    words = _load_tokenizer(read, model, tokenizer, trust_remote_code)
    built: Any = build_model(read, model, trust_remote_code).model
    refuse_infinite_weights(built)
    comparison = Comparison(built)
    if merge_adapter:
        built = merged_into_base(built)
    adapter = lora is not None and not merge_adapter
    with atomic_folder(out) as folder:
        built.save_pretrained(folder)
        if adapter:
            _name_base(built, folder)
        del built
        gc.collect()  # one model at a time: models refer to themselves in circles
        comparison.check(_loaded(folder, read, model, trust_remote_code, adapter), out)
        if words is not None:
            words.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(out.name, training, adapter), encoding="utf-8")
        config = checkpoint.parent.parent / "config.yaml"
        if config.is_file():
            shutil.copyfile(config, folder / "training.yaml")
    return training


def _loaded(
    folder: Path, read: dict[str, Any], model: str | None, trust_remote_code: bool, adapter: bool
) -> Any:
    """Load what was written, as a user would."""
    from transformers import AutoModelForCausalLM

    about = read["causal_lm"]
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not adapter:
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    from peft import PeftModel

    base = model or about["model"]
    factors = {t.dtype for name, t in read["state_dict"].items() if ".lora_" in name}
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=about["dtype"], **options),
        folder,
        autocast_adapter_dtype=torch.float32 in factors,
    )


def _load_tokenizer(
    read: dict[str, Any], model: str | None, tokenizer: str | None, trust_remote_code: bool
) -> Any:
    """Load the tokenizer as it is on disk; None where training knew of none."""
    about = read["causal_lm"]
    name = tokenizer or about["tokenizer"]
    if name is not None and name == about["model"]:
        name = model or name  # they moved together
    if name is None:
        return None
    try:
        return tokenizer_on_disk(name, trust_remote_code)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded ({type(error).__name__}): --tokenizer tells "
            "where it is"
        ) from error


def _name_base(built: PeftModel, folder: Path) -> None:
    """Have the adapter's config name a base on disk by a path that holds from everywhere."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = str(built.get_base_model().name_or_path)
    config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
