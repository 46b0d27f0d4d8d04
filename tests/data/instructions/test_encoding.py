import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from recall_lightning.data.instructions.encoding import Encoder
from recall_lightning.data.instructions.examples import Example
from recall_lightning.data.row_errors import RowError
from recall_lightning.models.generation import answer_in
from tests.support.subword_tokenizers import CORPUS, KINDS, subword_tokenizer

WORDS = st.lists(
    st.sampled_from([*"aeit :()\n.,ü東🎉", " the", " Paris", "ve", "\n\n", "capital", "▁"]),
    max_size=12,
).map("".join)
TEXTS = WORDS.filter(str.strip)
LONG = 10_000


def bare(tokenizer, text):
    """Tokens of a whole text, without what the tokenizer puts behind."""
    tokens = tokenizer(text)["input_ids"]
    behind = len(tokens) - len(tokenizer(text, add_special_tokens=False)["input_ids"])
    before = tokens[:1] == [tokenizer.bos_token_id] and behind > 0
    return tokens[: len(tokens) - (behind - before)]


def encoded(encoder, prompt, answer):
    try:
        return encoder.encode(Example(prompt, answer))
    except RowError as error:
        if "makes no token" not in str(error):  # WordPiece drops letters
            raise
        assume(False)


@pytest.mark.parametrize("separator", [" ", "", "\n"])
@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt="Answer: ", answer="Paris")
@example(prompt="Answer:\n", answer="\nParis")
def test_prompt_and_answer_are_the_tokens_of_one_text(kind, separator, prompt, answer):
    tokenizer = subword_tokenizer(kind)
    found = encoded(Encoder(tokenizer, LONG, separator), prompt, answer)
    text = prompt + separator + answer
    assert list(found.tokens) == [*bare(tokenizer, text), tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt="Answer: ", answer="Paris")
@example(prompt="the capi", answer="tal")
def test_what_is_asked_holds_nothing_of_the_answer_and_all_of_it_is_learned(kind, prompt, answer):
    tokenizer = subword_tokenizer(kind)
    found = encoded(Encoder(tokenizer, LONG, ""), prompt, answer)
    text = prompt + answer
    places = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    asked, learned = places[: found.answer_start], places[found.answer_start :]
    assert all(end <= len(prompt) for _, end in asked)
    assert learned[0][1] > len(prompt)
    assert found.asked == found.tokens[: found.answer_start]


@pytest.mark.parametrize("kind", ["byte_bpe", "trimmed_byte_bpe"])
@given(prompt=TEXTS, answer=TEXTS)
@example(prompt="the capi", answer="tal")
def test_what_is_learned_is_the_answer_behind_what_stands_before_it(kind, prompt, answer):
    tokenizer = subword_tokenizer(kind)
    found = encoded(Encoder(tokenizer, LONG, ""), prompt, answer)
    written = tokenizer.decode(found.tokens[found.answer_start : -1])
    assert written.strip() == (found.lead + answer).strip()


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, choices=st.lists(TEXTS, min_size=2, max_size=4, unique=True))
def test_choices_are_told_apart_behind_the_same_tokens(kind, prompt, choices):
    encoder = Encoder(subword_tokenizer(kind), LONG, "")
    asked = Example(prompt, choices[0], tuple(choices), 0)
    try:
        found = encoder.encode_choices(asked)
        alone = [encoder.encode(Example(prompt, choice)) for choice in choices]
    except RowError:
        assume(False)
    assert len({each.asked for each in found}) == 1
    assert [each.tokens for each in found] == [each.tokens for each in alone]
    assert all(
        each.answer_start <= one.answer_start for each, one in zip(found, alone, strict=True)
    )


def test_all_choices_and_training_lose_the_same_part_of_a_long_prompt():
    encoder = Encoder(subword_tokenizer("byte_bpe"), 30)
    asked = Example(CORPUS[0] * 3, "no", ("no", "the capital of France, Paris"), 0)
    found = encoder.encode_choices(asked)
    assert {each.lost for each in found} == {encoder.encode(asked).lost}
    assert len({each.asked for each in found}) == 1
    assert max(len(each.tokens) for each in found) == 30
    assert encoder.encode(asked).tokens == found[0].tokens


def test_the_first_token_of_a_model_is_never_cut_off():
    tokenizer = subword_tokenizer("llama_bpe")
    found = Encoder(tokenizer, 12).encode(Example("eta " * 20, "Paris"))
    assert (len(found.tokens), found.tokens[0]) == (12, tokenizer.bos_token_id)
    assert found.lost > 0


class Slow:
    """A tokenizer that cannot tell where its tokens stand."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast
        self.eos_token_id, self.bos_token_id = fast.eos_token_id, fast.bos_token_id
        self.eos_token, self.decode = fast.eos_token, fast.decode

    def __call__(self, text, **options):
        return self._fast(text, **options)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, answer=TEXTS)
def test_tokenizers_without_places_part_where_the_tokens_do(kind, prompt, answer):
    fast = subword_tokenizer(kind)
    found = encoded(Encoder(fast, LONG), prompt, answer)
    slow = encoded(Encoder(Slow(fast), LONG), prompt, answer)
    assert slow.tokens == found.tokens
    assert slow.answer_start <= found.answer_start


@pytest.mark.parametrize("separator", [" -> ", "\nOutput: ", "=>", " ", ""])
@pytest.mark.parametrize("kind", ["byte_bpe", "llama_bpe"])
def test_what_stands_before_an_answer_is_told_from_it(kind, separator):
    tokenizer = subword_tokenizer(kind)
    found = Encoder(tokenizer, LONG, separator).encode(Example("capital of Peru?", "Lima"))
    written = tokenizer.decode(found.tokens[found.answer_start :], skip_special_tokens=True)
    assert answer_in(written, found.lead, "") == "Lima"


def test_an_answer_with_the_token_that_ends_it_is_a_bad_row():
    encoder = Encoder(subword_tokenizer("byte_bpe"), LONG)
    with pytest.raises(RowError, match=r"its answer holds '</s>'.*it is put behind every answer"):
        encoder.encode(Example("capital of Peru?", "Lima</s>"))
