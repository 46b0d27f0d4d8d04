import pytest

from recall_lightning.data.instructions.conversations import Conversation
from recall_lightning.data.instructions.templates import template_of
from recall_lightning.data.row_errors import RowError

MESSAGES = [
    {"role": "system", "content": "s", "tool_calls": None},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
    for m in MESSAGES
]


def example(messages, **options):
    return Conversation(**options).example({"messages": messages})


def test_both_ways_to_write_turns_are_the_same_conversation():
    found = template_of("messages").example({"messages": MESSAGES})
    assert found == template_of("sharegpt").example({"conversations": SHAREGPT})
    assert (found.prompt, found.answer, found.references) == ("c", "d", ("d",))
    assert [turn.role for turn in found.before] == ["system", "user", "assistant"]


def test_all_answers_are_learned_or_the_last():
    assert example(MESSAGES).learn_before
    assert not example(MESSAGES, learn="last").learn_before


def test_what_is_said_behind_the_last_answer_is_left_out():
    assert example([*MESSAGES, {"role": "user", "content": "e"}]) == example(MESSAGES)


def test_a_system_prompt_of_a_column_is_for_conversations_without_one():
    row = {"conversations": SHAREGPT[1:], "system": "S"}
    assert template_of("sharegpt").example(row).before[0] == ("system", "S")
    assert template_of("sharegpt").example(row | {"system": ""}).before[0] == ("user", "a")
    assert (
        template_of("sharegpt").example(row | {"conversations": SHAREGPT}).before[0].content == "s"
    )


def turn(role, content="x", **more):
    return [*MESSAGES[:3], {"role": role, "content": content} | more, *MESSAGES[3:]]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "lists no turns"),
        (None, "lists no turns"),
        ([], "holds no answer"),
        (MESSAGES[:2], "holds no answer"),
        (MESSAGES[2:3], "holds no answer"),
        ([MESSAGES[0], MESSAGES[2]], "holds no answer"),
        (MESSAGES[2:], "begins with an answer"),
        (["hi", *MESSAGES], r"messages\[0\] is no turn"),
        ([{"text": "x"}, *MESSAGES], r"messages\[0\] has neither"),
        (turn("tool"), r"messages\[3\] is of the role 'tool'"),
        (turn("function"), "of the role 'function'"),
        (turn(None), "of the role None"),
        (turn(["user"]), "of the role"),
        (turn("user", ""), r"messages\[3\]\[content\] is empty"),
        (turn("user", None), "is empty"),
        (turn("user", "\ud83d"), "half a character"),
        (turn("user", [{"type": "image"}]), "that is no text"),
        (turn("assistant", "x", tool_calls=[{"name": "f"}]), "calls a tool"),
    ],
)
def test_what_is_no_conversation_says_why(messages, said):
    with pytest.raises(RowError, match=said):
        example(messages)


@pytest.mark.parametrize(
    "arguments", [{"learn": "first"}, {"score": "accuracy"}, {"system": "{#a}"}]
)
def test_what_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments)) + "|section"):
        Conversation(**arguments)
