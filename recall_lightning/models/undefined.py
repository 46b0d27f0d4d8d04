"""Which answers a model wrote without predicting anything."""

from __future__ import annotations

import torch
from torch import Tensor


class UndefinedPredictions:
    """A logits processor for ``generate`` that only tells where logits are no numbers.

    Of logits that are NaN a greedy search takes the first token, again and again, and what comes
    out looks like a poor answer of a model that works.

    Args:
        rows: How many answers are written.

    Attributes:
        rows: bool ``(B,)``, whether any token of an answer was chosen from logits of which one is
            NaN or +inf, or all are -inf.

    Example:
        >>> undefined = UndefinedPredictions(2)
        >>> _ = undefined(torch.zeros(2, 1), torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))
        >>> undefined.rows
        tensor([False,  True])
    """

    def __init__(self, rows: int) -> None:
        self.rows = torch.zeros(rows, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the next token's logits, ``(B, vocabulary)``, or those of several beams each."""
        undefined = ~scores.amax(dim=-1).isfinite()
        self.rows = self.rows.to(scores.device) | undefined.view(len(self.rows), -1).any(dim=1)
        return scores
