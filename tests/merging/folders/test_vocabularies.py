import json
import re

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recall_lightning.merging.folders.vocabularies import Vocabulary

WORDS = ["<unk>", "cat", "dog", "red"]


def word_level(folder, words=WORDS, added=(), normalizer=None):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_tokens([AddedToken(each, special=True) for each in added])
    fast.save_pretrained(folder)
    return Vocabulary.read(folder)


def bpe(folder, merges):
    letters = {letter: i for i, letter in enumerate("abc")} | {"ab": 3, "bc": 4}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters, merges))
    ).save_pretrained(folder)
    return Vocabulary.read(folder)


def test_the_same_tokenizer_does_not_differ(tmp_path):
    first = word_level(tmp_path / "a", added=["<s>"])
    assert first.difference(word_level(tmp_path / "b", added=["<s>"])) is None
    assert first.tokens == {**dict(enumerate(WORDS)), 4: "<s>"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"words": [WORDS[0], *WORDS[:0:-1]]}, "2 of their ids .* 1 for 'red' and not 'cat'"),
        ({"added": ["<t>"]}, "1 of their ids .* 4 for '<t>' and not '<s>'"),
        ({"added": []}, "4 for none and not '<s>'"),
        ({"added": ["<s>", "<t>"]}, "5 for '<t>' and not none"),
        ({"normalizer": normalizers.Lowercase()}, "differ in their normalizer"),
    ],
)
def test_what_is_another_token_or_another_reading_is_said(tmp_path, change, said):
    first = word_level(tmp_path / "a", added=["<s>"])
    other = word_level(tmp_path / "b", **{"added": ["<s>"]} | change)
    assert re.search(said, first.difference(other))


def test_merges_are_compared_in_their_old_and_new_form(tmp_path):
    first = bpe(tmp_path / "a", [("a", "b"), ("b", "c")])
    assert "by other merges" in first.difference(bpe(tmp_path / "b", [("b", "c"), ("a", "b")]))
    file = tmp_path / "a" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    file.write_text(json.dumps(content))
    assert first.difference(Vocabulary.read(tmp_path / "a")) is None


def test_lists_of_words_are_read_as_the_one_file_is(tmp_path):
    first = word_level(tmp_path / "a")
    for name, text in (
        ("vocab.txt", "\n".join(WORDS) + "\n"),
        ("vocab.json", json.dumps({word: i for i, word in enumerate(WORDS)})),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(text)
        other = Vocabulary.read(tmp_path / name)
        assert other.tokens == first.tokens
        assert first.difference(other) is None
        (tmp_path / name / "added_tokens.json").write_text('{"<s>": 4}')
        assert "4 for '<s>' and not none" in first.difference(Vocabulary.read(tmp_path / name))


def test_binary_files_are_compared_as_a_whole(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    first, same, other = (Vocabulary.read(tmp_path / name) for name in "abc")
    assert first.difference(same) is None
    assert first.difference(other) == "their tokenizer.model differ"
    fast = word_level(tmp_path / "fast")
    assert "which cannot be compared" in fast.difference(first)


def test_a_folder_without_tokenizer_has_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Vocabulary.read(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "x"}}}'),
        ("tokenizer.json", '{"model": {"vocab": ["a"]}}'),
        ("vocab.json", '{"a": []}'),
        ("added_tokens.json", '{"a": "x"}'),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "tokenizer.model").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"tokenizer in .* cannot be loaded"):
        Vocabulary.read(tmp_path)
