"""How right the answers of a language model are."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Normalisation = Literal["none", "tokens", "bytes"]


def answer_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the log-likelihood of each row's labels.

    Args:
        logits: Of the model, ``(B, L, vocabulary)``.
        labels: int64 ``(B, L)``, not shifted; -100 is not counted.

    Returns:
        Nats and numbers of counted tokens, float32 and int64 ``(B,)``.

    Example:
        >>> log_likelihood, tokens = answer_log_likelihood(
        ...     torch.zeros(1, 3, 4), torch.tensor([[-100, 1, 2]])
        ... )
        >>> round(log_likelihood.item(), 4), tokens.item()  # two of four equally likely tokens
        (-2.7726, 2)
    """
    targets = labels[:, 1:]
    nats = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return -nats.view(targets.shape).sum(dim=1), (targets != -100).sum(dim=1)


def chosen(
    model: Callable[..., Any], questions: Mapping[str, Any], normalise: Normalisation
) -> Tensor:
    """Return which answer a model finds most likely, one a question.

    Args:
        model: Returns ``logits`` of ``input_ids`` and ``attention_mask``.
        questions: ``choices``, ``counts`` and ``bytes`` of
            :func:`~recall_lightning.data.instructions.collating.collate_questions`.
        normalise: What the log-likelihood is divided by: nothing, or the answer's length in
            ``"tokens"`` or ``"bytes"``, without which long answers are at a disadvantage.

    Returns:
        int64 ``(B,)``.
    """
    rows = questions["choices"]
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    likelihood, tokens = answer_log_likelihood(logits, rows["labels"])
    if normalise != "none":
        likelihood = likelihood / (tokens if normalise == "tokens" else questions["bytes"])
    counts = questions["counts"].tolist()
    return torch.stack([part.argmax() for part in likelihood.split(counts)])


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation, articles and needless space, as SQuAD compares answers.

    >>> normalised_answer(" The  Eiffel Tower!")
    'eiffel tower'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if an answer is one of the right ones, normalised; else 0.

    Args:
        answer: What was written; empty stands for no answer.
        references: What is right; none where no answer is right.
    """
    return float(normalised_answer(answer) in map(normalised_answer, references or [""]))


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, of the best reference (SQuAD 2.0).

    Where no answer is right, or none is given, it is 1 if both agree, else 0
    (Rajpurkar et al. 2018, arXiv 1806.03822).

    Args:
        answer: What was written; empty stands for no answer.
        references: What is right; none where no answer is right.

    Example:
        >>> round(f1("in the north of France", ["northern France", "north of France"]), 3)
        0.857
    """

    def against(reference: str) -> float:
        own, right = (normalised_answer(text).split() for text in (answer, reference))
        if not own or not right:
            return float(own == right)
        common = sum((Counter(own) & Counter(right)).values())
        return 2 * common / (len(own) + len(right))

    return max(map(against, references or [""]))
