"""Merge coefficients from similarities."""

import math
from collections.abc import Mapping


def softmax_coefficients(
    similarity: Mapping[str, float], temperature: float = 1.0
) -> dict[str, float]:
    """Return each block's weight of the snapshot: softmax of {S, 1} / τ, the snapshot's part.

    The live model's similarity to itself is 1. With two models the softmax is
    w = 1 / (1 + exp((1 − S) / τ)): 0.5 where nothing moved, and never below 0.269 at τ = 1.
    Source: RECALL (arXiv 2510.20479), merge coefficients.

    Args:
        similarity: Block name to S in [0, 1].
        temperature: τ > 0; a smaller one leaves drifted blocks more to the live model.

    Example:
        >>> softmax_coefficients({"shallow": 1.0, "deep": 0.0})  # doctest: +ELLIPSIS
        {'shallow': 0.5, 'deep': 0.268...}
    """
    return {
        block: 0.5 * (1 - math.tanh((1 - s) / (2 * temperature)))  # the same, without overflow
        for block, s in similarity.items()
    }
