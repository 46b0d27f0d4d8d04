"""How right the answers of a language model are."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recall_lightning.models.predicted_tokens import nats, predicted, predicted_logits

Normalisation = Literal["none", "tokens", "bytes"]


@torch.no_grad()
def answer_log_likelihood(
    model: Callable[..., Any], rows: Mapping[str, Tensor], head: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the log-likelihood of each row's labels.

    Args:
        model: Returns ``logits`` of ``input_ids`` and ``attention_mask``.
        rows: ``input_ids``, ``attention_mask`` and ``labels``, int64 ``(B, L)``; labels are not
            shifted, and -100 is not counted.
        head: What makes the logits, see
            :func:`~recall_lightning.models.predicted_tokens.predicted_logits`.

    Returns:
        Nats and numbers of counted tokens, float32 and int64 ``(B,)``.
    """
    labels = rows["labels"]
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
    each = nats(*predicted_logits(model, inputs, labels, head))
    places = predicted(labels)
    counted = torch.zeros(places.shape, device=each.device).masked_scatter(places, -each)
    return counted.sum(dim=1), places.sum(dim=1)


def chosen(
    model: Callable[..., Any],
    questions: Mapping[str, Any],
    normalise: Normalisation,
    head: nn.Module | None = None,
) -> Tensor:
    """Return which answer a model finds most likely, one a question, its end of sequence included.

    Of equally likely answers it is the first, as in lm-evaluation-harness. An answer may be
    impossible (-inf); where the likelihood of one is no number, none is chosen.

    Args:
        model: Returns ``logits`` of ``input_ids`` and ``attention_mask``.
        questions: ``choices``, ``counts`` and ``bytes`` of
            :func:`~recall_lightning.data.instructions.collating.collate_questions`.
        normalise: What the log-likelihood is divided by: nothing, or the answer's length in
            ``"tokens"`` or ``"bytes"``, without which long answers are at a disadvantage.
        head: What makes the logits; with it only those of the answers are computed.

    Returns:
        int64 ``(B,)``; -1 where none is chosen.
    """
    likelihood, tokens = answer_log_likelihood(model, questions["choices"], head)
    if normalise != "none":
        likelihood = likelihood / (tokens if normalise == "tokens" else questions["bytes"])
    parts = likelihood.split(questions["counts"].tolist())
    return torch.stack([torch.where(p.isnan().any(), -1, p.argmax()) for p in parts])


def right_predictions(logits: Tensor, targets: Tensor) -> Tensor:
    """Tell where the most likely class is the right one.

    Args:
        logits: ``(N, classes)``.
        targets: int64 ``(N,)``.

    Returns:
        float32 ``(N,)``: 1, 0, or NaN where logits give no probabilities: one is NaN or +inf, or
        all are -inf.

    Example:
        >>> right_predictions(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), torch.tensor([1, 0]))
        tensor([1., nan])
    """
    most, at = logits.max(dim=-1)
    return torch.where(most.isfinite(), (at == targets).float(), torch.nan)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if an answer is one of the right ones to the letter; else 0.

    Space around it does not count, nor does how Unicode composes a letter (NFC). Case, punctuation
    and signs do: -5 is not 5.

    Args:
        answer: What was written; empty stands for no answer.
        references: What is right; none where no answer is right.

    Example:
        >>> exact_match("3.14", ["3.14"]), exact_match("3.14", ["314"])
        (1.0, 0.0)
    """
    return float(_plain(answer) in map(_plain, references or [""]))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def squad_normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and needless space, as SQuAD compares.

    >>> squad_normalised(" The  Eiffel Tower!")
    'eiffel tower'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _squad_references(references: Sequence[str]) -> list[str]:
    """What is left of the right answers, as the official script has it: none means no answer."""
    return [text for text in map(squad_normalised, references) if text] or [""]


def squad_exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if an answer is one of the right ones, both normalised as SQuAD does; else 0.

    Args:
        answer: What was written; empty stands for no answer.
        references: What is right; none where no answer is right.

    Example:
        >>> squad_exact_match("The Eiffel Tower!", ["eiffel tower"])
        1.0
    """
    return float(squad_normalised(answer) in _squad_references(references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, of the best reference, as SQuAD 2.0 has it.

    Both are normalised by :func:`squad_normalised`. Where no answer is right, or none is given, it
    is 1 if both agree, else 0 (Rajpurkar et al. 2018, arXiv 1806.03822, and its evaluation script).

    Args:
        answer: What was written; empty stands for no answer.
        references: What is right; none where no answer is right.

    Example:
        >>> round(f1("in the north of France", ["northern France", "north of France"]), 3)
        0.857
    """
    own = squad_normalised(answer).split()

    def against(reference: str) -> float:
        right = reference.split()
        if not own or not right:
            return float(own == right)
        common = sum((Counter(own) & Counter(right)).values())
        return 2 * common / (len(own) + len(right))

    return max(map(against, _squad_references(references)))


def without_refusals(
    answer: str, references: Sequence[str], said: str
) -> tuple[str, Sequence[str]]:
    """Return an answer and what is right, empty where the one or the other says there is none.

    Data may list what is said where there is no answer among the right ones; where others are right
    as well, it stays a text like them.

    Args:
        answer: What was written.
        references: What is right.
        said: What is to be said where no answer is right; empty if nothing is.

    Example:
        >>> without_refusals("Unanswerable", ["unanswerable"], "unanswerable")
        ('', [])
        >>> without_refusals("unanswerable", ["Paris"], "unanswerable")
        ('', ['Paris'])
    """
    says = [bool(said) and text.strip().lower() == said.lower() for text in references]
    if any(says) and not all(says):
        return answer, references
    none = bool(said) and answer.lower() == said.lower()
    return "" if none else answer, [] if any(says) else references


WRITTEN: dict[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": exact_match,  # of choices that are written
    "exact_match": exact_match,
    "squad_exact_match": squad_exact_match,
    "f1": f1,
}
"""How one written answer is scored, by the score's name."""
