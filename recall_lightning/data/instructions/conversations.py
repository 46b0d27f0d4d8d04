"""How a row that holds a conversation becomes turns to learn."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from recall_lightning.data.cells import is_empty, text_of
from recall_lightning.data.instructions.examples import Example, Message, before_of
from recall_lightning.data.instructions.formats import column_of, columns_of, fill, look_up, parse
from recall_lightning.data.instructions.words import check_language
from recall_lightning.data.row_errors import RowError

_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Conversation:
    """Rows that list the turns of a conversation, which the tokenizer's chat template writes down.

    A turn is a mapping: ``role`` and ``content`` (``messages``), or ``from`` and ``value``
    (ShareGPT), of the system, the user (``human``) or the assistant (``gpt``). What the user says
    behind the last answer is left out. Held-out conversations ask for the last answer, given all
    turns before it.

    Args:
        messages: The column that lists the turns.
        system: Format of a system prompt for conversations that have none, as in
            :class:`~recall_lightning.data.Template`; empty for none.
        learn: Whether ``"all"`` answers of the assistant are learned, or the ``"last"``. Each ends
            with the token that ends a turn in the chat template.
        score: How written answers are scored: ``"exact_match"``, ``"squad_exact_match"``, ``"f1"``
            or ``"bleu"``.
        no_answer: As in :class:`~recall_lightning.data.Template`.
        max_new_tokens: How long a written answer may be.
        language: As in :class:`~recall_lightning.data.Template`.
        bleu_tokenizer: As in :class:`~recall_lightning.data.Template`.

    Example:
        >>> turns = [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]
        >>> Conversation("conversations").example({"conversations": turns}).answer
        '5'
    """

    messages: str = "messages"
    system: str = ""
    learn: Literal["all", "last"] = "all"
    score: Literal["exact_match", "squad_exact_match", "f1", "bleu"] = "f1"
    no_answer: str | None = None
    max_new_tokens: int = 256
    language: str | None = None
    bleu_tokenizer: str | None = None

    separator: ClassVar[str] = ""
    writes: ClassVar[bool] = True
    fixed_prompt: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.learn not in ("all", "last"):
            raise ValueError(f"learn={self.learn!r} must be 'all' or 'last'")
        if self.score not in ("exact_match", "squad_exact_match", "f1", "bleu"):
            raise ValueError(
                f"score={self.score!r} must be 'exact_match', 'squad_exact_match', 'f1' or 'bleu'"
            )
        check_language(self)
        parse(self.system)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that rows must have, sorted."""
        return sorted({column_of(self.messages)} | columns_of(self.system)[0])

    @property
    def optional_columns(self) -> list[str]:
        """Names of the columns that rows may lack, sorted."""
        return sorted(columns_of(self.system)[1])

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example of a row.

        Raises:
            RowError: Saying what of the row is missing, empty, or no turn of a conversation.
        """
        listed = look_up(self.messages, row)
        if isinstance(listed, RowError):
            raise listed
        if not isinstance(listed, list | tuple):
            raise RowError(f"{self.messages} lists no turns, but holds {reprlib.repr(listed)}")
        turns = [self._turn(number, each) for number, each in enumerate(listed)]
        while turns and turns[-1].role != "assistant":
            turns.pop()
        if len(turns) < 2 or turns[-2].role != "user":
            raise RowError(f"{self.messages} holds no answer of the assistant to the user")
        if turns[0].role != "system":
            turns = [*before_of(fill(self.system, row)), *turns]
        spoken = [turn.role for turn in turns if turn.role != "system"]
        if spoken[0] != "user":
            raise RowError(f"{self.messages} begins with an answer, and nothing that was asked")
        *before, prompt, answer = turns
        return Example(
            prompt.content,
            answer.content,
            references=() if answer.content == self.no_answer else (answer.content,),
            before=tuple(before),
            learn_before=self.learn == "all",
        )

    def _turn(self, number: int, turn: Any) -> Message:
        name = f"{self.messages}[{number}]"
        if not isinstance(turn, Mapping):
            raise RowError(f"{name} is no turn, but {reprlib.repr(turn)}")
        for role, content in (("role", "content"), ("from", "value")):
            if role in turn and content in turn:
                break
        else:
            raise RowError(
                f"{name} has neither 'role' and 'content' nor 'from' and 'value', but "
                f"{', '.join(map(repr, turn))}"
            )
        if not isinstance(turn[role], str) or turn[role] not in _ROLES:
            raise RowError(
                f"{name} is of the role {turn[role]!r}; only turns of system, user (human) and "
                "assistant (gpt) are learned from, without tools"
            )
        if any(not is_empty(turn.get(tool)) for tool in ("tool_calls", "function_call")):
            raise RowError(f"{name} calls a tool, which is not learned")
        if not isinstance(turn[content], str | bytes | None):
            raise RowError(f"{name} has a {content} that is no text: {reprlib.repr(turn[content])}")
        return Message(_ROLES[turn[role]], text_of(turn[content], f"{name}[{content}]"))
