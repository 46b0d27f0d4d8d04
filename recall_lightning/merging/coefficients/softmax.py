"""Merge coefficients from similarities."""

import math
from collections.abc import Mapping, Sequence


def softmax_weights(similarity: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the models' weights: the softmax of S / τ. They sum to 1.

    Source: RECALL (arXiv 2510.20479), merge coefficients.

    Args:
        similarity: S of each model to the newest, in [0, 1]; the newest's own is 1.
        temperature: τ > 0; a smaller one leaves more to the models most alike.

    Example:
        >>> softmax_weights([1.0, 1.0])
        [0.5, 0.5]
    """
    highest = max(similarity)
    powers = [math.exp((s - highest) / temperature) for s in similarity]
    total = math.fsum(powers)
    return [power / total for power in powers]


def softmax_coefficients(
    similarity: Mapping[str, Sequence[float]], temperature: float = 1.0
) -> dict[str, list[float]]:
    """Return each block's weights of the snapshots: the softmax of {S₁ … S_k, 1} / τ, their part.

    The live model's similarity to itself is 1 and its weight is what is left. With one snapshot
    w = 1 / (1 + exp((1 − S) / τ)): 0.5 where nothing moved, and never below 0.269 at τ = 1.

    Args:
        similarity: Block name to S in [0, 1] of each snapshot.
        temperature: τ > 0; a smaller one leaves drifted blocks more to the live model.

    Example:
        >>> softmax_coefficients({"shallow": [1.0], "deep": [0.0]})  # doctest: +ELLIPSIS
        {'shallow': [0.5], 'deep': [0.268...]}
    """
    return {
        block: softmax_weights([*values, 1.0], temperature)[:-1]
        for block, values in similarity.items()
    }
