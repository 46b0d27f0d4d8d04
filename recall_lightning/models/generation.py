"""Where a language model stops when it writes answers, and what of the text is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn


def ends_of_generation(model: Any, trained: int | None) -> list[int]:
    """Return the tokens at which a model stops.

    Args:
        model: A model of transformers; its ``generation_config`` names one token or several.
        trained: The token with which answers end in training, if a single one does.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return sorted({int(token) for token in [*listed, trained] if token is not None})


@contextmanager
def nothing_of_its_own(model: Any) -> Iterator[None]:
    """Have a model write without what its ``generation_config`` adds to its predictions.

    Chat models come with penalties of repetition, beams or tokens to suppress: for conversations,
    and not for the answer that a model finds most likely, which the prompt may well hold.

    Args:
        model: A model of transformers, or of PEFT around one; it is left as it was.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(generation_config=SimpleNamespace(repetition_penalty=1.3))
        >>> with nothing_of_its_own(model):
        ...     model.generation_config.repetition_penalty in (None, 1.0)
        True
        >>> model.generation_config.repetition_penalty
        1.3
    """
    from transformers import GenerationConfig  # heavy

    parts = model.modules() if isinstance(model, nn.Module) else [model]
    owners = [part for part in parts if "generation_config" in vars(part)]
    kept = [part.generation_config for part in owners]
    try:
        for part, own in zip(owners, kept, strict=True):
            names = ("bos_token_id", "cache_implementation")
            plain = {name: getattr(own, name, None) for name in names}
            part.generation_config = GenerationConfig(**plain)
        yield
    finally:
        for part, own in zip(owners, kept, strict=True):
            part.generation_config = own


def room_to_write(model: Any, prompts: Mapping[str, Tensor], max_new_tokens: int) -> int:
    """Return how many tokens a model may write behind prompts, at most those it has positions for.

    Args:
        model: A model of transformers.
        prompts: ``input_ids``, int64 ``(B, L)``.
        max_new_tokens: How many are asked for.

    Raises:
        MisconfigurationException: If the prompts take all positions.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    length = prompts["input_ids"].shape[1]
    if not isinstance(positions, int) or positions <= 0:  # as many as it likes
        return max_new_tokens
    if length + max_new_tokens <= positions:
        return max_new_tokens
    if length >= positions:
        raise MisconfigurationException(
            f"a prompt of {length} tokens leaves none of the model's {positions} positions for an "
            "answer: lower max_length"
        )
    rank_zero_warn(
        f"a prompt of {length} tokens leaves {positions - length} of the model's {positions} "
        f"positions for an answer, fewer than max_new_tokens={max_new_tokens}: lower max_length"
    )
    return positions - length


def answer_in(text: str, lead: str, end: str) -> str:
    r"""Return the answer in what a model wrote.

    Args:
        text: What it wrote.
        lead: What it writes before an answer.
        end: What it writes behind one; empty where that is a token of its own.

    Example:
        >>> answer_in("> Paris\n### End and so on", ">", "\n### End")
        'Paris'
    """
    if end:
        text = text.partition(end)[0]
    return text.strip().removeprefix(lead.strip()).strip()
