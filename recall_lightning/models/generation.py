"""Where a language model stops when it writes answers, and what of the text is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from recall_lightning.models.undefined import UndefinedPredictions

_MINDS_PADDING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Models that were tried, and whether padding before a prompt changes what they predict."""


def ends_of_generation(model: Any, trained: int | None) -> list[int]:
    """Return the tokens at which a model stops.

    Args:
        model: A model of transformers; its ``generation_config`` names one token or several.
        trained: The token with which answers end in training, if a single one does.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return sorted({int(token) for token in [*listed, trained] if token is not None})


def written_alike(
    model: Any,
    prompts: Mapping[str, Tensor],
    max_new_tokens: int,
    undefined: UndefinedPredictions | None = None,
    **options: Any,
) -> list[list[int]]:
    """Return what a model writes behind prompts, whatever other prompts stand beside them.

    Shorter prompts are padded on the left, which most models do not see. Some with a recurrent
    state do, such as RWKV and RecurrentGemma: those are asked one prompt at a time. Which a model
    is, is tried once. So are prompts beside one that leaves too few positions to write to, which
    are no fewer for them.

    Args:
        model: A model of transformers.
        prompts: ``input_ids`` and ``attention_mask``, int64 ``(B, L)``, padded on the left.
        max_new_tokens: How many are written, where there is room for them.
        undefined: Takes note of rows that were written without predictions.
        **options: Of ``generate``, ``pad_token_id`` among them.

    Returns:
        The new tokens of each row.
    """
    ids, mask = prompts["input_ids"], prompts.get("attention_mask")
    positions = positions_of(model)
    fits = positions is None or ids.shape[1] + max_new_tokens <= positions
    if mask is None or (fits and not _minds_padding(model, ids[0][mask[0].bool()], options)):
        room = room_to_write(model, prompts, max_new_tokens)
        looks = [] if undefined is None else [undefined]
        written = model.generate(**prompts, max_new_tokens=room, logits_processor=looks, **options)
        return [row.tolist() for row in written[:, ids.shape[1] :]]
    found = []
    for number, row in enumerate(ids):
        own = {"input_ids": row[mask[number].bool()][None]}
        own["attention_mask"] = torch.ones_like(own["input_ids"])
        look, room = UndefinedPredictions(1), room_to_write(model, own, max_new_tokens)
        written = model.generate(**own, max_new_tokens=room, logits_processor=[look], **options)
        found.append(written[0, own["input_ids"].shape[1] :].tolist())
        if undefined is not None:
            undefined.rows[number] = look.rows[0]
    return found


def _minds_padding(model: Any, prompt: Tensor, options: Mapping[str, Any]) -> bool:
    """Tell whether padding before a prompt, int64 ``(L,)``, changes the logits behind it."""
    known = _MINDS_PADDING.get(model)
    if known is not None:
        return known
    start = prompt[:8]
    seen: list[Tensor] = []

    def keep(_: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores.detach().clone())
        return scores

    once = {**options, "max_new_tokens": 1, "logits_processor": [keep]}
    for padding in (0, 4):
        row = torch.cat([start.new_full((padding,), int(options["pad_token_id"])), start])[None]
        mask = torch.ones_like(row)
        mask[:, :padding] = 0
        model.generate(input_ids=row, attention_mask=mask, **once)
    alone, padded = seen
    if not alone.isfinite().all():
        return False  # nothing is seen of logits that are no numbers
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    if torch.is_autocast_enabled(start.device.type):
        dtypes.add(torch.get_autocast_dtype(start.device.type))
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    allowed = max(5e-3, 16 * rounding) * alone.abs().max()
    _MINDS_PADDING[model] = found = not bool((padded - alone).abs().max() <= allowed)
    return found


def room_to_write(model: Any, prompts: Mapping[str, Tensor], max_new_tokens: int) -> int:
    """Return how many tokens a model may write behind prompts, at most those it has positions for.

    Args:
        model: A model of transformers.
        prompts: ``input_ids``, int64 ``(B, L)``.
        max_new_tokens: How many are asked for.

    Raises:
        MisconfigurationException: If the prompts take all positions.
    """
    positions, length = positions_of(model), prompts["input_ids"].shape[1]
    if positions is None or length + max_new_tokens <= positions:
        return max_new_tokens
    if length >= positions:
        raise MisconfigurationException(
            f"a prompt of {length} tokens leaves none of the model's {positions} positions for an "
            "answer: lower max_length"
        )
    rank_zero_warn(
        f"a prompt of {length} tokens leaves {positions - length} of the model's {positions} "
        f"positions for an answer, fewer than max_new_tokens={max_new_tokens}: lower max_length"
    )
    return positions - length


def positions_of(model: Any) -> int | None:
    """Return how many positions a model has; None where it tells of no end of them."""
    own = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return own if isinstance(own, int) and own > 0 else None


def answer_in(text: str, lead: str, end: str) -> str:
    r"""Return the answer in what a model wrote.

    Args:
        text: What it wrote.
        lead: What it writes before an answer.
        end: What it writes behind one; empty where that is a token of its own.

    Example:
        >>> answer_in("> Paris\n### End and so on", ">", "\n### End")
        'Paris'
    """
    if end:
        text = text.partition(end)[0]
    return text.strip().removeprefix(lead.strip()).strip()
