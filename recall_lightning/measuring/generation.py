"""Sequences that a language model writes itself: what it knows, where there is no data of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.beginnings import Beginning, beginnings
from recall_lightning.measuring.isolation import undisturbed

AT_ONCE = 64  # a token of many takes little longer than one of few, but their cache is memory


@dataclass(frozen=True)
class Written:
    """What a model has written.

    Attributes:
        ids: Tokens, int64 (sequences, tokens).
        mask: int64 of that shape; 0 behind the end of a sequence that ended early.
        own: bool of that shape: which tokens the model chose; the others it was given.
        entropy: float32 of that shape, in nats: of the distribution each was drawn from; 0 where
            it was given.
    """

    ids: Tensor
    mask: Tensor
    own: Tensor
    entropy: Tensor

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """Return ``input_ids`` and ``attention_mask`` of ``size`` sequences each, or fewer."""
        return [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(self.ids.split(size), self.mask.split(size), strict=True)
        ]


def write_sequences(
    module: nn.Module,
    sequences: int,
    length: int,
    seed: int,
    begun: Sequence[Beginning] | None = None,
) -> Written:
    """Let a causal language model write sequences, in turn from each of some beginnings.

    Sampled at temperature 1 from the whole vocabulary, as in data-free distillation (LLM-QAT, Liu
    et al., arXiv 2305.17888), without the penalties and cuts that its ``generation_config`` may
    name. All start at the first position, without padding, and are written to their full length,
    with a cache, so that every process takes as many steps; what follows a sequence's end is
    masked. One that was begun as a user's turn ends with the answer to it. Random states and the
    module's mode are as before.

    Args:
        module: A module with a Hugging Face causal language model inside.
        sequences: How many.
        length: Tokens of each, the given ones included; at most what the model has positions for.
        seed: Of the first tokens and of sampling.
        begun: Beginnings; by default the model's first token, if it has one, and a random one.

    Returns:
        The sequences, on the model's device.

    Raises:
        ValueError: If no such model is found.
    """
    generator = find_generator(module)
    if generator is None:
        raise ValueError(
            f"{type(module).__name__} must hold a causal language model that generates"
        )
    begun = list(begun or beginnings(generator).values())
    length = min(length, getattr(generator.config, "max_position_embeddings", None) or length)
    parts: list[_Writing] = []
    ends = _ends(generator)
    with undisturbed(module), nothing_of_its_own(generator):
        torch.manual_seed(seed)
        for start in range(0, sequences, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, sequences))
            part = _Writing(generator, [begun[n % len(begun)] for n in numbers], length, ends)
            parts.append(part)
            part.write()
    return Written(
        ids=torch.cat([part.ids for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        own=torch.cat([part.own for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
    )


@torch.no_grad()
def nats_of(module: nn.Module, written: Written, sequences: int = 4) -> Tensor:
    """Return how unlikely a model finds what it has written where it is run on it as a whole.

    Args:
        module: The module that wrote it.
        written: What it wrote.
        sequences: How many of the sequences are looked at, from the first.

    Returns:
        Nats of each token, float32 (sequences, tokens); of the first one 0.
    """
    generator = find_generator(module)
    assert generator is not None
    batch = written.batches(sequences)[0]
    with undisturbed(module):
        logits = generator(**batch).logits[:, :-1].float()
    nats = nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
    )
    return nn.functional.pad(nats, (1, 0))


class _Writing:
    """Sequences that are written together; ``generate`` asks it before it draws each token."""

    def __init__(
        self, generator: Any, begun: Sequence[Beginning], length: int, ends: Sequence[int]
    ) -> None:
        self._generator, self._begun = generator, begun
        device = next(generator.parameters()).device
        shape = (len(begun), length)
        self.given = torch.full(shape, -1, device=device)  # −1 is for the model to choose
        for row, beginning in zip(self.given, begun, strict=True):
            tokens = beginning.tokens or torch.randint(generator.config.vocab_size, (1,)).tolist()
            row[: len(tokens)] = torch.tensor(tokens[:length], device=device)
        self.entropy = torch.zeros(shape, device=device)
        self._ends = torch.tensor(list(ends), device=device)
        self._asking = [bool(beginning.turn) for beginning in begun]  # the user's turn goes on
        self._turn_ends = torch.zeros(shape, dtype=torch.bool, device=device)

    def write(self) -> None:
        first = self.given[:, :1].clone()
        self.ids = self._generator.generate(
            input_ids=first,
            attention_mask=torch.ones_like(first),
            do_sample=False,
            max_new_tokens=self.given.shape[1] - 1,
            pad_token_id=0,  # of what has ended, which nothing does
            use_cache=True,  # which gradient checkpointing has switched off in the config
            logits_processor=[self],
        )
        self.own = self.given < 0
        ended = torch.isin(self.ids, self._ends) & self.own & ~self._turn_ends
        self.mask = (ended.cumsum(1) - ended.long() == 0).long()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Draw a token of each sequence, or take the given one, and leave no other to choose."""
        at = ids.shape[1]
        self._answer(ids, at)
        probabilities = scores.float().softmax(-1)
        given = self.given[:, at]
        self.entropy[:, at] = torch.special.entr(probabilities).sum(-1).where(given < 0, 0.0)
        # by one number a row: multinomial draws one for each of the vocabulary's tokens
        sums = probabilities.double().cumsum(-1)
        below = torch.rand(len(sums), 1, dtype=torch.float64).to(sums.device) * sums[:, -1:]
        drawn = torch.searchsorted(sums, below, right=True)[:, 0].clamp(max=sums.shape[1] - 1)
        token = drawn.where(given < 0, given)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    def _answer(self, ids: Tensor, at: int) -> None:
        """Where the model has ended the user's turn, have its answer begin."""
        if not any(self._asking):
            return
        for row, last in enumerate(ids[:, -1].tolist()):
            turn = self._begun[row].turn
            if self._asking[row] and last == turn[0] and self.given[row, at - 1] < 0:
                self._asking[row] = False
                self._turn_ends[row, at - 1] = True
                room = self.given[row, at : at + len(turn) - 1]
                room.copy_(torch.tensor(turn[1 : 1 + len(room)], device=room.device))


def _ends(generator: Any) -> list[int]:
    end = getattr(generator.generation_config, "eos_token_id", None)
    return [] if end is None else list(end) if isinstance(end, (list, tuple)) else [end]


@contextmanager
def nothing_of_its_own(model: Any) -> Iterator[None]:
    """Have a model write without what its ``generation_config`` adds to its predictions.

    Chat models come with penalties of repetition, beams or tokens to suppress: for conversations,
    and not for the answer that a model finds most likely, which the prompt may well hold.

    Args:
        model: A model of transformers, or of PEFT around one; it is left as it was.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(generation_config=SimpleNamespace(repetition_penalty=1.3))
        >>> with nothing_of_its_own(model):
        ...     model.generation_config.repetition_penalty in (None, 1.0)
        True
        >>> model.generation_config.repetition_penalty
        1.3
    """
    from transformers import GenerationConfig  # heavy

    parts = model.modules() if isinstance(model, nn.Module) else [model]
    owners = [part for part in parts if "generation_config" in vars(part)]
    kept = [part.generation_config for part in owners]
    try:
        for part, own in zip(owners, kept, strict=True):
            names = ("bos_token_id", "cache_implementation")
            plain = {name: getattr(own, name, None) for name in names}
            part.generation_config = GenerationConfig(**plain)
        yield
    finally:
        for part, own in zip(owners, kept, strict=True):
            part.generation_config = own
