"""Weighted sums of one tensor of every model, straight from the files."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recall_lightning.merging.folders.inputs import refuse_infinite
from recall_lightning.merging.functional.sums import WeightedSums
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.reading import ModelFiles


class CheckedSums:
    """Sums chunks of mapped tensors, and names the model at fault where a sum is not finite.

    Args:
        models: With the same names and shapes.
        device: Where it is computed.
    """

    def __init__(self, models: Sequence[ModelFiles], device: str) -> None:
        self._models = models
        self._device = device
        self._sums: dict[torch.dtype, WeightedSums] = {}

    def chunks(self, name: str, shares: Sequence[float], dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield Σᵢ shareᵢ · modelᵢ[name] as flat chunks of ``dtype``, in order.

        A chunk is valid until the one after the next is asked for, be it of another tensor.

        Raises:
            ValueError: If a chunk is not finite: a model's tensor is not, or the sum exceeds the
                dtype.
        """
        used = [(m, share) for m, share in zip(self._models, shares, strict=True) if share != 0]
        used = used or [(self._models[0], 0.0)]
        if dtype not in self._sums:
            self._sums[dtype] = WeightedSums(dtype, self._device)
        tensors = [model[name] for model, _ in used]
        for chunk in self._sums[dtype].chunks(tensors, [share for _, share in used]):
            if not all_finite(chunk):
                refuse_infinite([model for model, _ in used], name, dtype)
            yield chunk
