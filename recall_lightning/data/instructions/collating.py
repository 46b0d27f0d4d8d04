"""Batches of prompts and answers, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recall_lightning.data.instructions.encoding import Encoded

IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True)
class Question:
    """A held-out example: its tokens, and how what a model says of it is scored.

    Attributes:
        right: The prompt with the right answer.
        choices: The prompt with each answer to choose from; empty where the model writes.
        label: Which choice is right.
        prompt: The prompt alone, where the model writes.
        references: The answers that are right then; none where none is.
        lead: What it writes before the answer itself.
        choice_bytes: The length of each choice in bytes.
    """

    right: Encoded
    choices: tuple[Encoded, ...] = ()
    label: int = -1
    prompt: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    lead: str = ""
    choice_bytes: tuple[int, ...] = ()


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    longest = max(map(len, rows))
    padded = []
    for row in rows:
        padding = [value] * (longest - len(row))
        padded.append([*padding, *row] if left else [*row, *padding])
    return torch.tensor(padded)


def _labels(example: Encoded) -> list[int]:
    labels = [IGNORED] * example.answer_start + list(example.tokens[example.answer_start :])
    for start, end in example.not_learned:
        labels[start:end] = [IGNORED] * (end - start)
    return labels


def collate(examples: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Pad prompts and answers on the right.

    Args:
        examples: Prompts with answers.
        pad: The padding token.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 ``(B, L)``; -100 is not predicted.

    Example:
        >>> collate([Encoded((5, 6, 7), 1), Encoded((5, 8), 1)], pad=0)["labels"]
        tensor([[-100,    6,    7],
                [-100,    8, -100]])
    """
    return {
        "input_ids": _pad([each.tokens for each in examples], pad),
        "attention_mask": _pad([[1] * len(each.tokens) for each in examples], 0),
        "labels": _pad([_labels(each) for each in examples], IGNORED),
    }


def collate_packed(groups: Sequence[Sequence[Encoded]], pad: int) -> dict[str, Tensor]:
    """Put several examples after each other into each row.

    Positions start anew with each, from which transformers tells that none sees another. There is
    no ``attention_mask``, which would hide that.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``(B, L)``.

    Example:
        >>> collate_packed([[Encoded((5, 6), 1), Encoded((7, 8), 1)]], pad=0)["position_ids"]
        tensor([[0, 1, 0, 1]])
    """
    longest = max(sum(len(each.tokens) for each in group) for group in groups)
    positions = []
    for group in groups:
        row = [position for each in group for position in range(len(each.tokens))]
        positions.append([*row, *range(longest - len(row))])
    return {
        "input_ids": _pad([[t for each in group for t in each.tokens] for group in groups], pad),
        "position_ids": torch.tensor(positions),
        "labels": _pad([[t for each in g for t in _labels(each)] for g in groups], IGNORED),
    }


def collate_questions(
    questions: Sequence[Question],
    pad: int,
    score: str = "accuracy",
    max_new_tokens: int = 64,
    no_answer: str = "",
    tokenizer: str = "13a",
    end_token: int | None = None,
    end_text: str = "",
) -> dict[str, Any]:
    """Make a batch that :class:`~recall_lightning.models.CausalLMModule` scores.

    Besides what :func:`collate` returns of the right answers there is ``questions``, a dict:
    ``score`` and either ``choices`` (a batch as of :func:`collate`, one row a choice), ``label``
    ``(B,)``, ``counts`` ``(B,)`` and ``bytes``, one a choice; or ``prompts`` (``input_ids`` and
    ``attention_mask``, padded on the left), ``references``, ``leads``, ``no_answer``,
    ``max_new_tokens``, ``end_token``, ``end_text`` and BLEU's ``tokenizer``.
    """
    batch: dict[str, Any] = dict(collate([each.right for each in questions], pad))
    asked: dict[str, Any] = {"score": score}
    if questions[0].choices:
        asked["choices"] = collate([c for each in questions for c in each.choices], pad)
        asked["counts"] = torch.tensor([len(each.choices) for each in questions])
        asked["label"] = torch.tensor([each.label for each in questions])
        asked["bytes"] = torch.tensor([size for each in questions for size in each.choice_bytes])
    else:
        prompts = [each.prompt for each in questions]
        asked["prompts"] = {
            "input_ids": _pad(prompts, pad, left=True),
            "attention_mask": _pad([[1] * len(prompt) for prompt in prompts], 0, left=True),
        }
        asked["references"] = [list(each.references) for each in questions]
        asked["leads"] = [each.lead for each in questions]
        asked["end_token"], asked["end_text"] = end_token, end_text
        asked["no_answer"] = no_answer
        asked["max_new_tokens"] = max_new_tokens
        asked["tokenizer"] = tokenizer
    return batch | {"questions": asked}
