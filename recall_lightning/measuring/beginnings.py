"""What a language model's sequences begin with: its first token, or its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Start = Literal["bos", "chat", "random"]
"""The names of what a sequence may begin with."""

_WORDS = "zebra crossing"  # what the user says, until the template has shown where


@dataclass(frozen=True)
class Beginning:
    """Tokens that a sequence begins with.

    Attributes:
        tokens: Those up to where the model goes on by itself; None for a random one.
        turn: Tokens that end the user's turn and begin the answer, where the model goes on as the
            user and its template ends a turn by a token of its own. When the model writes the
            first, the others follow.
    """

    tokens: tuple[int, ...] | None
    turn: tuple[int, ...] = field(default=())


def beginnings(generator: Any, tokenizer: Any | None = None) -> dict[Start, Beginning]:
    """Return what sequences of a causal language model may begin with.

    ``"bos"`` is there if the model or its tokenizer has such a token, ``"chat"`` if the tokenizer
    has a chat template: up to the user's words, as in Magpie (Xu et al., arXiv 2406.08464), from
    where an aligned model writes instructions of the kind that it was trained on.

    Args:
        generator: That of :func:`~recall_lightning.measuring.architecture.find_generator`.
        tokenizer: A tokenizer of transformers, if there is one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        >>> config = LlamaConfig(vocab_size=16, num_attention_heads=2, bos_token_id=1, **sizes)
        >>> beginnings(LlamaForCausalLM(config))
        {'bos': Beginning(tokens=(1,), turn=()), 'random': Beginning(tokens=None, turn=())}
    """
    found: dict[Start, Beginning] = {}
    owners = (generator.config, getattr(generator, "generation_config", None), tokenizer)
    first = next((one for o in owners if (one := _known(o, generator)) is not None), None)
    if first is not None:
        found["bos"] = Beginning((first,))
    chat = None if tokenizer is None else _chat(tokenizer)
    if chat is not None and max(chat.tokens or (), default=0) < generator.config.vocab_size:
        found["chat"] = chat
    found["random"] = Beginning(None)
    return found


def _known(owner: Any, generator: Any) -> int | None:
    token = getattr(owner, "bos_token_id", None)
    known = isinstance(token, int) and 0 <= token < generator.config.vocab_size
    return token if known else None


def _chat(tokenizer: Any) -> Beginning | None:
    """Ask a chat template what it writes around what a user says; None where it does not tell."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    asked = [{"role": "user", "content": _WORDS}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:  # of jinja's and whatever the template does to Python objects
        return None
    before, said, after = text.rpartition(_WORDS)
    tokens = _ids(tokenizer, before)
    if not said or not tokens:
        return None
    turn = _ids(tokenizer, after)
    ends_by_token = bool(turn) and turn[0] in _special(tokenizer)
    return Beginning(tokens, turn if ends_by_token else ())


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _special(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}


def available(starts: Sequence[Start], found: dict[Start, Beginning]) -> list[Beginning]:
    """Return the beginnings of the names in ``starts`` that there are.

    Raises:
        ValueError: If there is none of them.
    """
    chosen = [found[name] for name in starts if name in found]
    if not chosen:
        raise ValueError(
            f"prior.starts={list(starts)} must have one that the model can begin with, "
            f"{', '.join(map(repr, found))} ('bos' takes a bos_token_id in its config, 'chat' a "
            "tokenizer with a chat template)"
        )
    return chosen
