"""Prompts and answers as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.instructions.chat import ChatFormat
from recall_lightning.data.instructions.examples import Example
from recall_lightning.data.instructions.written import Answer, Tokens, Written
from recall_lightning.data.row_errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt and its answer.

    Attributes:
        tokens: Both, with the tokenizer's own first token and one that ends the answer.
        answer_start: Where the first answer begins: from there on tokens are learned.
        lost: How many tokens of the prompt were cut off.
        not_learned: Ranges of tokens behind it that are not: what others say between two answers.
        lead: What the model writes before the last answer itself, such as the rest of a token that
            begins in the prompt.
    """

    tokens: tuple[int, ...]
    answer_start: int
    lost: int = 0
    not_learned: tuple[tuple[int, int], ...] = ()
    lead: str = field(default="", compare=False)

    @property
    def asked(self) -> tuple[int, ...]:
        """The tokens before the last answer: what the model is asked with."""
        return self.tokens[: self.not_learned[-1][1] if self.not_learned else self.answer_start]


class Encoder:
    """Turns examples into tokens.

    Prompt and answer are tokenised as one text, which is then split: see
    :class:`~recall_lightning.data.instructions.written.Tokens`. With a chat template that text is
    what the template writes, up to and with the token that ends the answer's turn; else it is
    prompt, separator and answer, and the end-of-sequence token behind.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: The most tokens of prompt and answer. Longer prompts lose their beginning, all
            choices of one example the same part of it.
        separator: What stands between prompt and answer.
        chat: Whether the tokenizer's chat template wraps prompt and answer.

    Raises:
        MisconfigurationException: If ``chat`` is asked for and the tokenizer has no chat template
            that serves.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        separator: str = " ",
        chat: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.separator = separator
        self.chat = ChatFormat(tokenizer) if chat else None

    @property
    def end_token(self) -> int | None:
        """The token with which answers end, if it is a single one."""
        if self.chat is not None and self.chat.ending:
            return self.chat.end_token
        return self.tokenizer.eos_token_id

    @property
    def end_text(self) -> str:
        """The text with which answers end, where that is no token of its own."""
        return self.chat.ending if self.chat is not None and self.end_token is None else ""

    def encode(self, example: Example) -> Encoded:
        """Return prompt and answer, cut to the maximum length at the prompt's beginning.

        Raises:
            RowError: If the answer alone is too long, the tokenizer makes nothing of it, or the
                chat template does not take it.
        """
        whole = self._whole(example, example.answer)
        longest = max((len(choice.encode()) for choice in example.choices), default=0)
        # A token is a byte or more, but for some at the border.
        if len(whole.tokens) + longest + 8 * bool(longest) <= self.max_length:
            return whole
        others = [self._whole(example, choice) for choice in example.choices]
        return self._cut(whole, self._too_many([whole, *others]))

    def encode_choices(self, example: Example) -> list[Encoded]:
        """Return the prompt with each choice; all answers begin behind the same tokens.

        Raises:
            RowError: As of :meth:`encode`.
        """
        wholes = [self._whole(example, choice) for choice in example.choices]
        shared = self._shared(wholes)
        lost = self._too_many(wholes)
        return [self._cut(Encoded(whole.tokens, shared), lost) for whole in wholes]

    def check_fits(self, fixed_prompt: str) -> None:
        """See whether what the prompts of all rows have in common leaves room for an answer.

        Raises:
            MisconfigurationException: If it does not, so that no prompt ever fits.
        """
        tokens = len(self._whole(Example(fixed_prompt or "?", "a"), "a").tokens)
        if tokens > self.max_length:
            raise MisconfigurationException(
                f"its template's own text and an answer of one letter are {tokens} tokens, so with "
                f"max_length={self.max_length} every prompt loses a part of the template: raise "
                "max_length, or shorten the template"
            )

    def _written(self, example: Example, answer: str) -> Written:
        if self.chat is not None:
            return self.chat.write(example, answer)
        if example.before:
            raise RowError("it has a system prompt or earlier turns, which need chat=True")
        end = self.tokenizer.eos_token
        if end in answer:
            raise RowError(
                f"its answer holds {end!r}, which the tokenizer takes for the end of what is said: "
                "leave it out, it is put behind every answer"
            )
        begin, start = len(example.prompt), len(example.prompt + self.separator)
        text = example.prompt + self.separator + answer
        return Written(text, (Answer(begin, start, len(text)),), special=True)

    def _whole(self, example: Example, answer: str) -> Encoded:
        """Return prompt and answer uncut."""
        written = self._written(example, answer)
        borders = [] if self.chat is None else [each.begin for each in written.answers]
        tokens = Tokens(self.tokenizer, written.text, written.special, borders)
        learned = [(tokens.before(each.begin), tokens.begun(each.end)) for each in written.answers]
        for (first, _), each in zip(learned, written.answers, strict=True):
            if tokens.before(each.start) >= tokens.before(each.end):
                raise RowError("the tokenizer makes no token of its answer")
            if not first:
                raise RowError("the tokenizer makes no token of its prompt alone")
        not_learned = tuple((end, start) for (_, end), (start, _) in pairwise(learned))
        lead = self._lead(tokens, written, learned[-1][0])
        numbers = tokens.numbers[: learned[-1][1]]
        if not written.closed:
            numbers = [*numbers, self.tokenizer.eos_token_id]
        return Encoded(tuple(numbers), learned[0][0], 0, not_learned, lead)

    def _lead(self, tokens: Tokens, written: Written, first: int) -> str:
        """What a model writes before the last answer, which begins with that token, as it reads."""
        start = written.answers[-1].start
        reached = tokens.before(start)
        whole = tokens.numbers[first:reached]
        text = self.tokenizer.decode(whole, skip_special_tokens=True) if whole else ""
        begun = tokens.start_of(reached)
        return text if begun is None else text + written.text[begun:start]

    def _shared(self, wholes: Sequence[Encoded]) -> int:
        """Return how many tokens all begin with, before any of their answers."""
        together = zip(*(whole.tokens[: whole.answer_start] for whole in wholes), strict=False)
        return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, together))

    def _too_many(self, wholes: Sequence[Encoded]) -> int:
        """Return how many tokens of a prompt have to go, for each of its answers to fit."""
        shared = self._shared(wholes)
        answer = max(len(whole.tokens) for whole in wholes) - shared
        if answer >= self.max_length:
            raise RowError(f"its answer of {answer} tokens leaves no room in {self.max_length}")
        return max(0, shared + answer - self.max_length)

    def _cut(self, whole: Encoded, lost: int) -> Encoded:
        if not lost:
            return whole
        starts = whole.tokens[0] == self.tokenizer.bos_token_id  # which is never cut off
        first = whole.tokens[:1] if starts and lost + 1 < whole.answer_start else ()
        return Encoded(
            (*first, *whole.tokens[lost + len(first) :]),
            whole.answer_start - lost,
            lost,
            tuple((start - lost, end - lost) for start, end in whole.not_learned),
            whole.lead,
        )


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
