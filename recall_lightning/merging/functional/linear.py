"""The weighted sum of models."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recall_lightning.merging.functional.in_place import weighted_sum_
from recall_lightning.merging.functional.method import MergeMethod
from recall_lightning.merging.functional.operands import check_models, rounded


def linear(models: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Add up weighted models: Σᵢ wᵢθᵢ.

    Source: model soups, Wortsman et al. (arXiv 2203.05482).

    Args:
        models: One weight tensor of every model, all of one shape.
        weights: One number a model, used as given: what sums to 1 averages.

    Returns:
        A new tensor in the dtype of the first model. Computed in float64; rounded once.

    Raises:
        ValueError: If counts or shapes differ, or anything is not floating point or not finite.

    Example:
        >>> linear([torch.tensor([0.0, 4.0]), torch.tensor([4.0, 4.0])], [0.75, 0.25])
        tensor([1., 4.])
    """
    check_models(models, weights)
    merged = torch.empty_like(models[0], requires_grad=False)
    named = [{"": model.detach()} for model in models]
    weighted_sum_({"": merged}, named, weights, check_finite=False)
    return rounded(merged, models[0])


LINEAR = MergeMethod(linear, summed="always", normalize=None)
