"""Where a language model stops when it writes answers, and what of the text is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor


def ends_of_generation(model: Any, trained: int | None) -> list[int]:
    """Return the tokens at which a model stops.

    Args:
        model: A model of transformers; its ``generation_config`` names one token or several.
        trained: The token with which answers end in training, if a single one does.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return sorted({int(token) for token in [*listed, trained] if token is not None})


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
    if not isinstance(positions, int) or length + max_new_tokens <= positions:
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
