"""The average of models by how alike their hidden states are to the newest's."""

import math
from collections.abc import Sequence

from torch import Tensor

from recall_lightning.merging.coefficients.softmax import softmax_weights
from recall_lightning.merging.functional.linear import linear
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import check_numbers


def recall(
    models: Sequence[Tensor], similarity: Sequence[float], *, temperature: float = 1.0
) -> Tensor:
    """Average models by how alike their hidden states are to the newest's: Σᵢ softmax(Sᵢ/τ) θᵢ.

    Source: RECALL (arXiv 2510.20479), merge coefficients and hierarchical merge.

    Args:
        models: One weight tensor of every model, all of one shape.
        similarity: S of each model in the block that the weight belongs to; the newest's own is 1.
        temperature: τ > 0; a smaller one leaves more to the models most alike.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64; rounded once.

    Raises:
        ValueError: If counts or shapes differ, anything is not floating point or not finite, or
            ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> recall([torch.tensor([0.0]), torch.tensor([1.0])], [0.0, 1.0])
        tensor([0.7311])
    """
    check_numbers("similarity", similarity, models)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} must be a positive number")
    return linear(models, softmax_weights(similarity, temperature))


RECALL = MergeMethod(
    recall,
    summed="always",
    normalize=True,
    weights_from_similarity=softmax_weights,
    positive=("temperature",),
)
