"""Whether what a language model has written is text of its own kind, or shows that it has none."""

from __future__ import annotations

import math

from torch import Tensor

from recall_lightning.measuring.generation import Written

REPEATED = 0.1
"""The share of repeated n-grams from which sequences count as repetitions; text has 1 to 4 %."""
NOISE = 0.9
"""The share of the vocabulary's entropy from which tokens count as drawn at random."""
APART = 0.5
"""Nats a token between likelihood and entropy from which a model does not run as it writes."""


def repeated_share(ids: Tensor, mask: Tensor, n: int) -> float:
    """Return which part of n-grams stand in their sequence before.

    That is one minus the distinct share of Li et al. (arXiv 1510.03055), as rep-n in Welleck et
    al. (arXiv 1908.04319), over all sequences together.

    Args:
        ids: Tokens, int64 (sequences, tokens).
        mask: 0 behind the end of a sequence, of that shape.
        n: Tokens of an n-gram.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 0]])
        >>> mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
        >>> round(repeated_share(ids, mask, n=2), 3)  # (1, 2) and (2, 1), of four and of three
        0.286
    """
    grams = repeats = 0
    for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True):
        own = [tuple(row[start : start + n]) for start in range(int(length) - n + 1)]
        grams += len(own)
        repeats += len(own) - len(set(own))
    return repeats / grams if grams else 0.0


def gram_length(vocabulary: int) -> int:
    """Return how long an n-gram is that text does not repeat by chance: about 40 nats at most.

    >>> [gram_length(vocabulary) for vocabulary in (256, 32_000, 128_000)]
    [8, 4, 4]
    """
    return max(4, math.ceil(40 / math.log(max(2, vocabulary))))


def why_degenerate(written: Written, vocabulary: int, nats: Tensor | None = None) -> str | None:
    """Say why what a model has written tells little of what it knows; None where it does not.

    Args:
        written: What it has written.
        vocabulary: How many tokens it knows.
        nats: Those of the first sequences' tokens where the model is run on them (see
            :func:`~recall_lightning.measuring.generation.nats_of`): in the mean the entropy of what
            they were drawn from, but for chance.
    """
    chosen = written.own & written.mask.bool()
    if not bool(chosen.any()):
        return "it has written nothing"
    n = gram_length(vocabulary)
    repeated = repeated_share(written.ids, written.mask, n)
    if repeated > REPEATED:
        return f"{repeated:.0%} of its sequences of {n} tokens repeat earlier ones"
    entropy, most = float(written.entropy[chosen].mean()), math.log(vocabulary)
    if entropy > NOISE * most:
        return f"its tokens are all but random ({entropy:.2f} nats each, of {most:.2f} at most)"
    if nats is None:
        return None
    looked_at = chosen[: len(nats)]
    off = (nats - written.entropy[: len(nats)])[looked_at]
    chance = 4 * float(off.std(correction=0)) / math.sqrt(max(1, off.numel()))
    if not abs(float(off.sum())) / max(1, off.numel()) <= APART + chance:  # NaN is apart, too
        return (
            f"its tokens are unlikely by {float(nats[looked_at].mean()):.2f} nats where it is run "
            f"on them, and it drew them from an entropy of {entropy:.2f}: it does not run as it "
            "writes"
        )
    return None
