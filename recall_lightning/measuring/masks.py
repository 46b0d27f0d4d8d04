"""Which tokens of a batch are none but padding."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def token_mask(batch: Any, decoder: bool = False) -> Tensor | None:
    """Find the mask of a batch's tokens: True where a token counts, or None if there is no mask.

    Args:
        batch: A mapping, or a tuple or list that starts with one.
        decoder: Whether the tokens are those of the decoder of two stacks: then
            ``decoder_attention_mask`` counts, or the labels that are not −100.

    Example:
        >>> import torch
        >>> token_mask({"attention_mask": torch.tensor([[1, 1, 0]])})
        tensor([[ True,  True, False]])
    """
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Mapping):
        return None
    if decoder and "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"] != 0
    if decoder and "labels" in batch:
        return batch["labels"] != -100
    mask = batch.get("attention_mask")
    return mask != 0 if isinstance(mask, Tensor) else None
