"""Prompts and answers written down as one text, and the tokens of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answer(NamedTuple):
    """Where in a text a model takes over.

    Attributes:
        begin: The first character behind what it is asked with.
        start: The first character of what it is to say; what lies between belongs to the format.
        end: The first character behind what it is to write.
    """

    begin: int
    start: int
    end: int


@dataclass(frozen=True)
class Written:
    """A text that ends with an answer.

    Attributes:
        text: All of it.
        answers: Those that are learned, in order.
        closed: Whether the text itself says that the last of them ends there.
        special: Whether the tokenizer puts special tokens of its own in front.
    """

    text: str
    answers: tuple[Answer, ...]
    closed: bool = False
    special: bool = False


class Tokens:
    """The tokens of a text, and where in it they stand.

    The text is tokenised once and whole, as what a tokenizer makes of two parts apart is not what
    it makes of them together. A token across the border of two parts belongs to the second: what is
    before it holds nothing of the second part, and nothing of the second part is left out.
    A chat model, though, is asked by everyone with the tokens of what its template asks with.
    Where that ends within a token, such as a blank with the answer's first word, the text is
    tokenised in two parts, if these say the same (SentencePiece may add a blank to the second).

    Tokenizers that cannot tell where their tokens stand are asked for the first part's tokens too,
    and the second part begins where the whole text's tokens differ from these.

    Args:
        tokenizer: A tokenizer of transformers.
        text: What is tokenised.
        special: Whether it puts special tokens of its own in front; none are put behind.
        borders: Characters before which a token ends wherever it can.

    Attributes:
        numbers: The tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        special: bool,
        borders: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._text, self._special = tokenizer, text, special
        self._places: list[tuple[int, int]] | None = None
        if not tokenizer.is_fast:
            self.numbers = self._without_places(text)
            return
        self.numbers, self._places = self._with_places(text)
        across = [at for at in borders if any(start < at < end for start, end in self._places)]
        if across:
            self._part(across)

    def _part(self, borders: Sequence[int]) -> None:
        numbers: list[int] = []
        places: list[tuple[int, int]] = []
        for begin, end in pairwise([0, *borders, len(self._text)]):
            found = self._with_places(self._text[begin:end])
            numbers += found[0]
            places += [(begin + start, begin + stop) for start, stop in found[1]]
        together, apart = (
            self._tokenizer.decode(each, clean_up_tokenization_spaces=False)
            for each in (self.numbers, numbers)
        )
        if together == apart:
            self.numbers, self._places = numbers, places

    def _with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found: Any = self._tokenizer(
            text, add_special_tokens=self._special, return_offsets_mapping=True, verbose=False
        )
        numbers, places = list(found["input_ids"]), [tuple(p) for p in found["offset_mapping"]]
        while self._special and places and places[-1] == (0, 0):
            places.pop()
            numbers.pop()
        return numbers, places

    def before(self, position: int) -> int:
        """Return how many tokens stand wholly before a character."""
        if self._places is None:
            return self._shared(position)
        reached = (n for n, (_, end) in enumerate(self._places) if end > position)
        return next(reached, len(self.numbers))

    def begun(self, position: int) -> int:
        """Return how many tokens begin before a character."""
        if position >= len(self._text):
            return len(self.numbers)
        if self._places is None:
            return self._shared(position)
        reached = (n for n, (start, _) in enumerate(self._places) if start >= position)
        return next(reached, len(self.numbers))

    def start_of(self, token: int) -> int | None:
        """Return the first character of a token, where the tokenizer can tell."""
        return None if self._places is None else self._places[token][0]

    def _shared(self, position: int) -> int:
        apart = self._without_places(self._text[:position])
        pairs = zip(apart, self.numbers, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _without_places(self, text: str) -> list[int]:
        tokenizer = self._tokenizer
        found: Any = tokenizer(text, add_special_tokens=self._special, verbose=False)
        numbers = list(found["input_ids"])
        if self._special:
            bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            while len(numbers) > len(bare) and numbers[len(numbers) - len(bare) :] != bare:
                numbers.pop()
        return numbers
