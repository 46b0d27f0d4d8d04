"""What rows become: a prompt with what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Message(NamedTuple):
    """A turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Example:
    """One prompt with what is right.

    Attributes:
        prompt: What the model reads.
        answer: What it is to say.
        choices: All answers it may choose from; empty where it writes freely.
        label: Which of them is right.
        references: All answers that count as right when it writes freely.
        before: What was said before the prompt, which a chat template writes.
        learn_before: Whether the answers in it are learned as well.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    label: int = -1
    references: tuple[str, ...] = ()
    before: tuple[Message, ...] = ()
    learn_before: bool = False


def before_of(system: str) -> tuple[Message, ...]:
    """What stands before a prompt: a system prompt, if there is one."""
    return (Message("system", system),) if system.strip() else ()
