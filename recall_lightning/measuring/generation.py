"""Sequences that a language model writes itself: what it knows, where there is no data of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.isolation import undisturbed

_BATCHES_AT_ONCE = 4  # a token of many sequences takes little longer than one of few


def generated_batches(
    module: nn.Module, batches: int, batch_size: int, length: int, seed: int
) -> list[dict[str, Tensor]]:
    """Let a causal language model write sequences, each from a random first token.

    Sampled at temperature 1 from the whole vocabulary, as in data-free distillation (LLM-QAT, Liu
    et al., arXiv 2305.17888). Random states and the module's mode are as before.

    Args:
        module: A module with a Hugging Face causal language model inside.
        batches: How many batches.
        batch_size: Sequences in each.
        length: Tokens of a sequence, the first included; at most what the model has positions for.
        seed: Of the first tokens and of sampling.

    Returns:
        Batches with ``input_ids`` and ``attention_mask``, int64 (batch_size, length) on the model's
        device; sequences that ended early are padded, and masked there.

    Raises:
        ValueError: If no such model is found.
    """
    generator = find_generator(module)
    if generator is None:
        raise ValueError(f"{type(module).__name__} holds no causal language model that generates")
    device = next(generator.parameters()).device
    longest = getattr(generator.config, "max_position_embeddings", None) or length
    vocabulary = generator.config.vocab_size
    made: list[dict[str, Tensor]] = []
    with undisturbed(module):
        torch.manual_seed(seed)
        while len(made) < batches:
            at_once = min(_BATCHES_AT_ONCE, batches - len(made))
            first = torch.randint(vocabulary, (at_once * batch_size, 1)).to(device)
            ids = generator.generate(
                input_ids=first,
                attention_mask=torch.ones_like(first),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                max_new_tokens=min(length, longest) - 1,
                pad_token_id=_padding(generator),
                use_cache=True,  # which gradient checkpointing has switched off in the config
            )
            made += [
                {"input_ids": part, "attention_mask": _written(part, generator)}
                for part in ids.split(batch_size)
            ]
    return made


def _ends(generator: Any) -> list[int]:
    end = getattr(generator.generation_config, "eos_token_id", None)
    return [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]


def _padding(generator: Any) -> int:
    padding = getattr(generator.generation_config, "pad_token_id", None)
    return padding if padding is not None else next(iter(_ends(generator)), 0)


def _written(ids: Tensor, generator: Any) -> Tensor:
    """Mask what follows the first end of a sequence."""
    ended = torch.isin(ids[:, 1:], torch.tensor(_ends(generator), device=ids.device)).cumsum(1)
    earlier = torch.cat([torch.zeros_like(ids[:, :2]), ended[:, :-1]], dim=1)
    return (earlier[:, : ids.shape[1]] == 0).long()
