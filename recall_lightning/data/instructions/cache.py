"""Tokenised data on disk, found again by all that it depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recall_lightning.data.instructions.encoding import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_VERSION = 2  # of what examples are made into; what an older one made is not found again


def key_of(tokenizer: PreTrainedTokenizerBase, *parts: Any) -> str:
    """Identify tokenised data by what it is made from.

    Args:
        tokenizer: Its vocabulary and settings count, not its name.
        *parts: All else; anything whose ``repr`` tells it apart.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    special = [tokenizer.chat_template, tokenizer.special_tokens_map]
    return blake2b(repr([_VERSION, own, special, *parts]).encode(), digest_size=16).hexdigest()


def content_of(file: str) -> str:
    """Identify a file by what it holds.

    Example:
        >>> content_of(__file__) == content_of(__file__)
        True
    """
    digest = blake2b(digest_size=16)
    with open(file, "rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save(examples: Sequence[Encoded], notes: dict[str, str], path: Path) -> None:
    """Write tokenised examples and what was said of them; the file appears whole or not at all."""
    from safetensors.torch import save_file

    tensors = {
        "tokens": torch.tensor([token for each in examples for token in each.tokens]),
        "lengths": torch.tensor([len(each.tokens) for each in examples]),
        "answer_starts": torch.tensor([each.answer_start for each in examples]),
        "lost": torch.tensor([each.lost for each in examples]),
        "not_learned": torch.tensor(
            [[n, *span] for n, each in enumerate(examples) for span in each.not_learned]
        )
        .reshape(-1, 3)
        .long(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, unfinished, notes)
    unfinished.replace(path)


def load(path: Path) -> tuple[list[Encoded], dict[str, str]]:
    """Read what :func:`save` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = file.metadata() or {}
    parts = tensors["tokens"].split(tensors["lengths"].tolist())
    starts, lost = tensors["answer_starts"].tolist(), tensors["lost"].tolist()
    spans: list[list[tuple[int, int]]] = [[] for _ in parts]
    for number, start, end in tensors["not_learned"].tolist():
        spans[number].append((start, end))
    examples = [
        Encoded(tuple(part.tolist()), start, cut, tuple(between))
        for part, start, cut, between in zip(parts, starts, lost, spans, strict=True)
    ]
    return examples, notes
