"""How far models on disk lie apart: their blocks' hidden states on a few typical texts."""

import gc
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.blocks import Block, find_blocks
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.typical_samples import choose_typical_samples
from recall_lightning.merging.folders.settings import MergeSettings
from recall_lightning.merging.rules import rule_by_name
from recall_lightning.merging.rules.similarity import Similarity
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.reading import ModelFiles

_BATCH = 16
_ANSWERS = ("completion", "response", "answer", "output")


def similarity_to_newest(
    models: Sequence[ModelFiles], settings: MergeSettings
) -> tuple[list[dict[str, float]], list[str]]:
    """Measure each model's similarity to the last one, block by block.

    The texts are tokenised with the donor's tokenizer; typical ones are chosen by k-means over the
    last model's deepest hidden states. Models are loaded one at a time.
    Source: RECALL (arXiv 2510.20479).

    Args:
        models: Hugging Face folders or adapters, or weight files if a donor has the config.
        settings: Of the merge; its probe says what is measured.

    Returns:
        Block name to similarity in [0, 1] of each model, 1 for the last; and the blocks' names,
        shallow to deep.

    Raises:
        ValueError: If the probe file has too few usable texts, or a model cannot be loaded.
    """
    probe = settings.probe
    assert probe is not None
    texts = list(read_texts(Path(probe.file), probe.pool_size))
    if len(texts) < 2:
        raise ValueError(
            f"{probe.file} has {len(texts)} usable line{'s' if len(texts) != 1 else ''}, and two "
            "or more are needed to measure: give JSON lines with a 'text', or plain lines"
        )
    rule = rule_by_name(probe.measure, "measure")
    assert isinstance(rule, Similarity)  # the settings were checked
    tokenizer = _tokenizer(models[-1], settings)
    module = _loaded(models[-1], settings)
    encoded = _tokenised(tokenizer, texts, settings, _positions(module))
    blocks = find_blocks(module)
    deepest = _states(models[-1], module, blocks[-1:], _batches(encoded, torch.arange(len(texts))))
    count = min(probe.typical_samples, len(texts))
    chosen = choose_typical_samples(deepest[blocks[-1].name], count, probe.seed)
    typical = _batches(encoded, chosen)
    newest = _states(models[-1], module, blocks, typical)
    del module
    similarity = []
    for model in models[:-1]:
        gc.collect()  # models refer to themselves in circles
        states = _states(model, _loaded(model, settings), blocks, typical)
        similarity.append({n: rule.similarity(states[n], newest[n]) for n in newest})
    return [*similarity, dict.fromkeys(newest, 1.0)], [block.name for block in blocks]


def read_texts(file: Path, most: int) -> Iterator[str]:
    """Yield up to ``most`` texts of a probe file: JSON lines, or plain lines.

    A JSON line may hold ``text``, or ``prompt`` with ``completion``, ``response``, ``answer`` or
    ``output``, or chat ``messages``, whose contents are joined. Empty lines and other objects are
    passed over.

    Raises:
        ValueError: If the file cannot be read as text, or a line of a ``.jsonl`` is no JSON.
    """
    found = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.strip()
                if text and file.suffix in (".jsonl", ".json"):
                    text = _text_of(_parsed(text, f"line {number} of {file}"))
                if text:
                    yield text
                    found += 1
                if found == most:
                    return
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist: name a probe file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text ({error}): name a probe file") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}): mend it") from error


def _text_of(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping):
        return ""
    if isinstance(entry.get("messages"), list):
        contents = [m.get("content") for m in entry["messages"] if isinstance(m, Mapping)]
        return "\n".join(content for content in contents if isinstance(content, str))
    fields = ["text"] if "text" in entry else ["prompt", *_ANSWERS]
    return "\n".join(entry[f] for f in fields if isinstance(entry.get(f), str)).strip()


def _tokenised(
    tokenizer: Any, texts: list[str], settings: MergeSettings, positions: int
) -> dict[str, Tensor]:
    assert settings.probe is not None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    length = min(settings.probe.max_length, positions)
    encoded = tokenizer(
        texts, return_tensors="pt", padding=True, truncation=True, max_length=length
    )
    if not encoded["attention_mask"].any(dim=1).all():
        raise ValueError(
            f"{settings.probe.file} has a text of which the tokenizer makes no token: drop it"
        )
    return {name: tensor.to(settings.device) for name, tensor in encoded.items()}


def _batches(encoded: Mapping[str, Tensor], samples: Tensor) -> list[dict[str, Tensor]]:
    return [
        {name: tensor[part.to(tensor.device)] for name, tensor in encoded.items()}
        for part in samples.split(_BATCH)
    ]


def _forward(module: Any, batch: Mapping[str, Tensor]) -> None:
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    takes = inspect.signature(base.forward).parameters
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name in takes}
    if "logits_to_keep" in takes:
        inputs["logits_to_keep"] = 1  # logits over a vocabulary are the largest tensor by far
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = batch["input_ids"]
        inputs["decoder_attention_mask"] = batch["attention_mask"]
    module(**inputs)


def _positions(module: nn.Module) -> int:
    """Return how many tokens a model can take."""
    most = getattr(module.config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else sys.maxsize


def _states(
    model: ModelFiles,
    module: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    try:
        states = hidden_states(module, blocks, batches, _forward)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{model.path} cannot run on the probe's texts ({_first_line(error)}): give it the "
            "tokenizer and the architecture of the others"
        ) from error
    for name, state in states.items():
        if not all_finite(state):
            raise ValueError(
                f"{model.path} makes NaN or infinite hidden states in block {name}: it cannot be "
                "measured"
            )
    return states


def _config_folder(model: ModelFiles, settings: MergeSettings) -> str:
    """Return where the config and tokenizer of a model's architecture are."""
    if model.adapter_config is not None:
        base = settings.base or model.adapter_config.get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{model.path} does not say which model it adapts: give base")
        return str(base)
    if model.config is not None:
        return str(model.path)
    folders = [settings.donor, settings.base, *settings.models]
    found = next((f for f in folders if f and (Path(f) / "config.json").is_file()), None)
    if found is None:
        raise ValueError(
            f"recall runs the models, and nothing says what {model.path} is: name a Hugging Face "
            "folder of its architecture as donor"
        )
    return str(found)


def _tokenizer(newest: ModelFiles, settings: MergeSettings) -> Any:
    from transformers import AutoTokenizer

    folders = [settings.donor, str(newest.path), _config_folder(newest, settings), *settings.models]
    for folder in dict.fromkeys(f for f in folders if f):
        if Path(folder).is_dir() and any(Path(folder).glob("*token*")):
            try:
                return AutoTokenizer.from_pretrained(folder)
            except Exception as error:  # what the files make it do may raise anything
                raise ValueError(
                    f"the tokenizer in {folder} cannot be loaded ({_first_line(error)}): save it "
                    "again, or name another folder as donor"
                ) from error
    raise ValueError(
        f"recall tokenises texts and no model has a tokenizer: save one in {newest.path}, or name "
        "a folder that has it as donor"
    )


def _loaded(model: ModelFiles, settings: MergeSettings) -> nn.Module:
    """Load a model to be measured; all its parameters count as its blocks'."""
    import transformers

    if model.kind == "adapter" and not model.path.is_dir():
        raise ValueError(
            f"recall runs the models, and {model.path} holds an adapter in a checkpoint: give the "
            "folder that recall-lightning export writes of it"
        )
    folder = _config_folder(model, settings)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        architectures = config.architectures or ["AutoModelForCausalLM"]
        kind = getattr(transformers, architectures[0])
        own = model.kind not in ("huggingface", "adapter")
        module, found = kind.from_pretrained(
            None if own else folder,
            config=config,
            state_dict=dict(model) if own else None,
            dtype="auto",
            output_loading_info=True,
        )
        if model.kind == "adapter":
            from peft import PeftModel

            module = PeftModel.from_pretrained(module, str(model.path))
    except Exception as error:  # what the files make it do may raise anything
        raise ValueError(
            f"{model.path} cannot be loaded to be measured with the config in {folder} "
            f"({_first_line(error)}): use a method that measures nothing, or mend it"
        ) from error
    if found["missing_keys"]:
        raise ValueError(
            f"{model.path} cannot be measured because it lacks weights of its architecture, such "
            f"as {min(found['missing_keys'])}: name a folder with the right config as donor"
        )
    return module.requires_grad_(True).eval().to(settings.device)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
