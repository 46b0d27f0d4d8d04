"""Prompts and answers as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.instructions.templates import Example
from recall_lightning.data.rows import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt and its answer.

    Attributes:
        tokens: Both, with the tokenizer's own first token and an end-of-sequence token.
        answer_start: Where the answer begins, which alone is learned.
        lost: How many tokens of the prompt were cut off.
    """

    tokens: tuple[int, ...]
    answer_start: int
    lost: int = 0


class Encoder:
    """Turns examples into tokens.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: The most tokens of prompt and answer. Longer prompts lose their beginning.
        separator: What stands between prompt and answer.
        chat: Whether the tokenizer's chat template wraps prompt and answer.

    Raises:
        MisconfigurationException: If ``chat`` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        separator: str = " ",
        chat: bool = False,
    ) -> None:
        if chat and tokenizer.chat_template is None:
            raise MisconfigurationException(
                f"chat=True needs a chat template, and the tokenizer {tokenizer.name_or_path} has "
                "none: set chat=False, or take the tokenizer of a chat model"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.separator = separator
        self.chat = chat

    def prompt(self, example: Example) -> list[int]:
        """Return the prompt's tokens, all of them."""
        if self.chat:
            messages = [{"role": "user", "content": example.prompt}]
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            return self._tokens(text, special=False)  # the template writes its own
        tokens = self._tokens(example.prompt, special=True)
        ends = tokens[-1:] == [self.tokenizer.eos_token_id]
        return tokens[:-1] if ends else tokens

    def answer(self, text: str) -> list[int]:
        """Return an answer's tokens, with the end of sequence behind them."""
        before = "" if self.chat else self.separator
        return [*self._tokens(before + text, special=False), self.tokenizer.eos_token_id]

    def encode(self, example: Example, answer: str | None = None) -> Encoded:
        """Return prompt and answer, cut to the maximum length at the prompt's beginning.

        Args:
            example: The example.
            answer: Another answer than its own.

        Raises:
            RowError: If the answer alone is too long.
        """
        prompt, target = self.prompt(example), self.answer(answer or example.answer)
        kept, lost = self._cut(prompt, len(target))
        return Encoded((*kept, *target), len(kept), lost)

    def encode_prompt(self, example: Example, room: int) -> list[int]:
        """Return a prompt that leaves room for an answer to be written."""
        return self._cut(self.prompt(example), room)[0]

    def _cut(self, prompt: Sequence[int], answer: int) -> tuple[list[int], int]:
        room = self.max_length - answer
        if room < 1:
            raise RowError(f"its answer of {answer} tokens leaves no room in {self.max_length}")
        lost = max(0, len(prompt) - room)
        first = prompt[:1] if lost and self._starts(prompt) and room > 1 else []
        return [*first, *prompt[lost + len(first) :]], lost

    def _starts(self, prompt: Sequence[int]) -> bool:
        """Tell whether the first token is the model's own start, which is never cut off."""
        return prompt[0] == self.tokenizer.bos_token_id

    def _tokens(self, text: str, special: bool) -> list[int]:
        found: Any = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return list(found)


def packed(examples: Sequence[Encoded], max_length: int) -> list[list[Encoded]]:
    """Group examples, in their order, as many as fit into a sequence each time.

    >>> parts = [Encoded((1,) * length, 1) for length in (3, 4, 2, 6)]
    >>> [[len(part.tokens) for part in group] for group in packed(parts, 8)]
    [[3, 4], [2, 6]]
    """
    groups: list[list[Encoded]] = []
    room = 0
    for example in examples:
        if len(example.tokens) > room:
            groups.append([])
            room = max_length
        groups[-1].append(example)
        room -= len(example.tokens)
    return groups
