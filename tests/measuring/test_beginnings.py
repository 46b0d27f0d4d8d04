import pytest
import transformers

from recall_lightning.measuring.beginnings import Beginning, available, beginnings
from tests.support.chat_templates import CHATML, LLAMA_2, LLAMA_3
from tests.support.tiny_language_model import save_tokenizer
from tests.support.tiny_transformers import tiny_llama


def tokenizer_with(template, tmp_path, *special):
    tokenizer = transformers.AutoTokenizer.from_pretrained(save_tokenizer(tmp_path))
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def begun(template, tmp_path, *special):
    tokenizer = tokenizer_with(template, tmp_path, *special)
    chat = beginnings(tiny_llama(vocab_size=300), tokenizer)["chat"]
    return tokenizer.decode(chat.tokens), tokenizer.decode(chat.turn)


def test_a_chat_begins_with_all_that_its_template_writes_before_a_users_words(tmp_path):
    marks = ("<|im_start|>", "<|im_end|>")
    assert begun(CHATML, tmp_path, *marks) == (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    before, turn = begun(LLAMA_3, tmp_path, *marks)
    assert before == "<s><|start_header_id|>user<|end_header_id|>\n\n"
    assert turn == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def test_where_plain_text_ends_a_users_turn_the_model_is_left_to_write_it(tmp_path):
    assert begun(LLAMA_2, tmp_path) == ("<s>[INST] ", "")


def test_a_template_that_refuses_or_leaves_out_the_words_is_no_beginning(tmp_path):
    for template in ("{{ raise_exception('no') }}", "{{ bos_token }}", None):
        found = beginnings(tiny_llama(vocab_size=300), tokenizer_with(template, tmp_path))
        assert list(found) == ["bos", "random"]


def test_tokens_that_the_model_does_not_know_begin_nothing(tmp_path):
    tokenizer = tokenizer_with(CHATML, tmp_path, "<|im_start|>", "<|im_end|>")
    small = tiny_llama(vocab_size=16, bos_token_id=16)
    assert beginnings(small, tokenizer) == {"bos": Beginning((0,)), "random": Beginning(None)}
    assert list(beginnings(tiny_llama(bos_token_id=None, eos_token_id=None))) == ["random"]


def test_starts_that_there_are_not_are_left_out_and_none_at_all_is_refused():
    found = beginnings(tiny_llama(bos_token_id=3))
    assert available(("random", "chat", "bos"), found) == [Beginning(None), Beginning((3,))]
    with pytest.raises(
        ValueError,
        match=r"starts=\['chat'\] must have one that the model can begin with, 'bos', 'r",
    ):
        available(("chat",), found)
