"""What a tokenizer's chat template writes, and where in it the answers stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.instructions.examples import Example, Message
from recall_lightning.data.instructions.written import Answer, Written
from recall_lightning.data.row_errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatFormat:
    """Writes conversations by a tokenizer's chat template, and finds the answers again.

    An answer begins where the template leaves off when it is asked for one
    (``add_generation_prompt``), and ends with the first special token behind it, which ends a turn:
    ``<|im_end|>``, ``<|eot_id|>``, ``</s>`` …, or, of a template that has none there, with the text
    that it writes behind every answer. Where it writes nothing, only the end-of-sequence token that
    is put behind the last answer teaches to end.

    Args:
        tokenizer: A tokenizer of transformers.

    Attributes:
        ending: What the template writes behind an answer, up to the end of its turn; empty if it
            writes nothing there.
        end_token: The token that ends a turn, if a single one does.

    Raises:
        MisconfigurationException: If there is no chat template, or none that asks for answers in
            the way in which it writes them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._name = f"the chat template of the tokenizer {tokenizer.name_or_path}"
        if tokenizer.chat_template is None:
            raise MisconfigurationException(
                f"chat=True needs a chat template, and the tokenizer {tokenizer.name_or_path} has "
                "none: set chat=False, or take the tokenizer of a chat model"
            )
        asked = [Message("user", "sky")]
        answers = ("sea 1", "sun 2")  # whatever stands behind both is the template's
        try:
            begun, alone = self._write(asked, ask=True), self._write(asked)
            whole = [self._write([*asked, Message("assistant", answer)]) for answer in answers]
        except RowError as error:
            raise MisconfigurationException(
                f"{self._name} writes no answer ({error}): mend it, or set chat=False"
            ) from error
        if not all(map(str.__contains__, whole, answers)):
            raise MisconfigurationException(f"{self._name} leaves answers out: mend it")
        between = whole[0][len(begun) : whole[0].index(answers[0])]
        if not whole[0].startswith(begun) or (begun == alone and between.strip()):
            raise MisconfigurationException(
                f"{self._name} does not begin an answer when asked for one (add_generation_prompt) "
                "as it writes it down, so a model would be asked in another way than it was "
                "trained: mend it"
            )
        tail = whole[0][whole[0].index(answers[0]) + len(answers[0]) :]
        self.ending, self.end_token = self._end_of_turn(tail)
        marks = [tokenizer.bos_token, tokenizer.eos_token]
        if self.end_token is not None:
            marks.append(self._special()[self.end_token])
        self._marks = {str(mark) for mark in marks if mark}

    def _end_of_turn(self, tail: str) -> tuple[str, int | None]:
        known = {str(token): number for number, token in self._special().items()}
        found = [(tail.find(text), -len(text)) for text in known if text and text in tail]
        if not found:
            return tail.rstrip(), None
        start, length = min(found)
        return tail[: start - length], known[tail[start : start - length]]

    def _special(self) -> dict[int, str]:
        tokenizer = self.tokenizer
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        return special | {n: t.content for n, t in tokenizer.added_tokens_decoder.items()}

    def write(self, example: Example, answer: str) -> Written:
        """Write down a conversation up to the end of its last answer.

        Raises:
            RowError: If the template refuses it, or leaves out or alters what was said.
        """
        turns = [*example.before, Message("user", example.prompt), Message("assistant", answer)]
        self._check_marks(turns)
        text = self._write(turns)
        self._check_said(turns, text)
        learned = [len(turns) - 1]
        if example.learn_before:
            learned = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
        answers = tuple(self._answer(turns[: number + 1], text, len(turns)) for number in learned)
        return Written(text[: answers[-1].end], answers, closed=bool(self.ending))

    def _answer(self, turns: Sequence[Message], text: str, count: int) -> Answer:
        """Find the last of the given turns in the text of that many."""
        *before, last = turns
        begun = self._write(before, ask=True)
        if not text.startswith(begun):
            raise RowError(
                f"its chat template writes the turns before turn {len(turns)} in another way once "
                "there are more, so what is asked would not be what was trained: learn='last' of "
                "the Conversation"
            )
        for said in (last.content, last.content.strip()):
            if self.ending or len(turns) < count:
                start = text.find(said + self.ending, len(begun))
            else:
                start = len(text.rstrip()) - len(said.rstrip())
                start = start if text.startswith(said.rstrip(), start) else -1
            if start >= len(begun):
                return Answer(len(begun), start, start + len(said + self.ending))
        raise RowError(f"its chat template does not write turn {len(turns)} as it stands")

    def _check_marks(self, turns: Sequence[Message]) -> None:
        for number, turn in enumerate(turns, 1):
            held = sorted(mark for mark in self._marks if mark in turn.content)
            if held:
                raise RowError(
                    f"turn {number}, of the {turn.role}, holds {held[0]!r}, which the tokenizer "
                    "takes for the beginning or the end of what is said"
                )

    def _check_said(self, turns: Sequence[Message], text: str) -> None:
        position = 0
        for number, turn in enumerate(turns, 1):
            said = turn.content.strip()
            moved = turn.role == "system"  # which some write into a later turn
            found = text.find(said, 0 if moved else position)
            if found < 0:
                raise RowError(
                    f"its chat template leaves out or alters turn {number}, of the {turn.role}"
                )
            position = position if moved else found + len(said)

    def _write(self, turns: Sequence[Message], ask: bool = False) -> str:
        listed = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(
                listed, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # of jinja's and whatever the template does to Python objects
            roles = ", ".join(turn.role for turn in turns)
            raise RowError(f"its chat template refuses turns of {roles}: {error}") from error
        assert isinstance(text, str)
        return text
