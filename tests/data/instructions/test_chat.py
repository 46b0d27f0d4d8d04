import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.instructions.collating import collate
from recall_lightning.data.instructions.encoding import Encoder
from recall_lightning.data.instructions.examples import Example, Message
from recall_lightning.data.row_errors import RowError
from tests.support import chat_templates
from tests.support.chat_templates import EVERY_ANSWER_ENDS
from tests.support.subword_tokenizers import KINDS, subword_tokenizer

TALK = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "Paris"),
    Message("user", "and that of Peru?"),
)
SYSTEM = Message("system", "Is it (very) positive")


def talk(learn_before=True, system=False, answer="Lima, and Lima."):
    before = (*([SYSTEM] if system else []), *TALK[:2])
    return Example(TALK[2].content, answer, before=before, learn_before=learn_before)


def encoder(template, kind="byte_bpe", length=10_000):
    return Encoder(subword_tokenizer(kind, template), length, chat=True)


def turns(example):
    said = [*example.before, Message("user", example.prompt), Message("assistant", example.answer)]
    return [{"role": turn.role, "content": turn.content} for turn in said]


def learned(example, tokenizer):
    """The parts that are learned, decoded."""
    labels = collate([example], 0)["labels"][0].tolist()
    parts, last = [], -100
    for label in labels:
        if label != -100:
            parts += [[]] if last == -100 else []
            parts[-1].append(label)
        last = label
    return [tokenizer.decode(part) for part in parts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY_ANSWER_ENDS)
def test_what_is_trained_is_the_template_s_own_text_up_to_the_end_of_the_turn(name, kind):
    template, end = EVERY_ANSWER_ENDS[name]
    own = encoder(template, kind)
    found, tokenizer = own.encode(talk()), own.tokenizer
    whole = tokenizer.apply_chat_template(turns(talk()), tokenize=True, return_dict=True)
    whole, end = whole["input_ids"], tokenizer.convert_tokens_to_ids(end)
    last = len(whole) - 1 - whole[::-1].index(end)
    assert list(found.tokens) == whole[: last + 1]
    assert own.end_token == end
    assert list(found.asked) == whole[: len(found.asked)]


@pytest.mark.parametrize("name", EVERY_ANSWER_ENDS)
def test_every_answer_is_learned_with_its_end_or_the_last_alone(name):
    template, end = EVERY_ANSWER_ENDS[name]
    own = encoder(template)
    every = learned(own.encode(talk()), own.tokenizer)
    assert [part.split() for part in every][:1] == [f"Paris {end}".split()] or every[0] == (
        f"Paris{end}"
    )
    assert len(every) == 2
    assert learned(own.encode(talk(learn_before=False)), own.tokenizer) == every[1:]
    assert every[1].replace("<think>\n\n</think>\n\n", "").replace(" ", "") == (
        f"Lima,andLima.{end}"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_learned_are_the_tokens_that_a_marked_template_says(kind):
    own = encoder(chat_templates.MARKED, kind)
    found = own.encode(talk(system=True))
    marked = own.tokenizer.apply_chat_template(
        turns(talk(system=True)),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    labels = collate([found], 0)["labels"][0]
    mask = marked["assistant_masks"][: len(labels)]
    assert [int(label != -100) for label in labels] == mask
    assert not any(marked["assistant_masks"][len(labels) :])


def test_what_is_asked_is_what_the_template_asks_with():
    own = encoder(chat_templates.CHATML)
    asked = own.tokenizer.apply_chat_template(
        turns(talk())[:-1], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert list(own.encode(talk()).asked) == list(own.encode(talk(False)).asked) == asked


def test_what_the_template_writes_before_an_answer_is_told_apart_from_it():
    assert encoder(chat_templates.THINKING).encode(talk()).lead == "<think>\n\n</think>\n\n"
    assert encoder(chat_templates.CHATML).encode(talk()).lead == ""


def test_where_the_template_writes_no_end_the_end_of_sequence_stands_behind_the_last_answer():
    own = encoder(chat_templates.UNENDED)
    (last,) = learned(own.encode(talk(False)), own.tokenizer)
    assert last == "Lima, and Lima.</s>"
    assert own.end_token == own.tokenizer.eos_token_id
    assert learned(own.encode(talk()), own.tokenizer) == ["Paris", "Lima, and Lima.</s>"]


def test_an_end_that_is_text_is_learned_as_text():
    own = encoder(chat_templates.PLAIN_END)
    assert learned(own.encode(talk()), own.tokenizer)[-1].strip() == "Lima, and Lima.\n### End"
    assert (own.end_token, own.end_text) == (None, "\n### End")


@pytest.mark.parametrize(
    ("template", "example", "said"),
    [
        ("GEMMA", talk(system=True), "refuses turns of system, .*System role not supported"),
        ("GEMMA", Example("a?", "b", before=TALK[:1]), "roles must alternate"),
        ("CHATML", talk(answer="a<|im_end|>b"), r"turn 4, .* holds '<.im_end.>'"),
        ("UNENDED", Example("</s>", "b"), "turn 1, .* holds '</s>'"),
        ("DROPS_SYSTEM", talk(system=True), "leaves out or alters turn 1, of the system"),
        (
            "SHORTENS",
            Example("c?", "d", before=(TALK[0], Message("assistant", "so</think>b"))),
            "leaves out or alters turn 2, of the assistant",
        ),
    ],
)
def test_what_a_template_does_not_take_is_a_bad_row(template, example, said):
    with pytest.raises(RowError, match=said):
        encoder(getattr(chat_templates, template)).encode(example)


@pytest.mark.parametrize("template", ["UNASKED", "ASKS_OTHERWISE"])
def test_a_template_that_asks_in_another_way_than_it_writes_is_refused(template):
    with pytest.raises(MisconfigurationException, match="asked in another way than it was trained"):
        encoder(getattr(chat_templates, template))


def test_a_conversation_that_is_too_long_loses_nothing_of_what_is_learned():
    own = encoder(chat_templates.CHATML)
    whole = own.encode(talk())
    shorter = encoder(chat_templates.CHATML, length=len(whole.tokens) - 3).encode(talk())
    assert shorter.tokens == whole.tokens[3:]
    assert learned(shorter, own.tokenizer) == learned(whole, own.tokenizer)
    assert shorter.asked == whole.asked[3:]
    with pytest.raises(RowError, match="leaves no room"):
        encoder(chat_templates.CHATML, length=10).encode(talk())


def test_a_token_across_the_border_of_what_is_asked_is_parted_there_if_that_says_the_same():
    for kind in ("byte_bpe", "llama_bpe"):
        own = encoder(chat_templates.BLANK_BEFORE, kind)
        tokenizer, (found, apart) = own.tokenizer, parted(own, "Paris")
        whole = tokenizer("[INST] Capital? [/INST] Paris</s>", add_special_tokens=False)
        assert tokenizer.decode(found.tokens) == tokenizer.decode(whole["input_ids"])
        if kind == "byte_bpe":
            assert (found.tokens, found.lead) == (apart, "")
        else:  # which would say two blanks
            assert list(found.tokens) == whole["input_ids"]
            assert found.lead == " "


def parted(own, answer):
    asked, said = "[INST] Capital? [/INST] ", f"{answer}</s>"
    apart = (own.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, said))
    return own.encode(Example("Capital?", answer)), tuple(token for part in apart for token in part)
