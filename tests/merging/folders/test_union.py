import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recall_lightning.merging.folders.merge import merge_files
from recall_lightning.merging.folders.settings import MergeSettings, ProbeSettings
from tests.support.tiny_models import llama, loaded, saved, tensors

WORDS = ["<unk>", "cat", "dog", "red", "one"]
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def model(folder, seed, words=WORDS, added=(), rows=8, bpe=False, **config):
    """Save a model whose tokenizer has these words, and tokens added to them."""
    saved(llama(seed, vocab_size=rows, **config), folder, tokenizer=False)
    vocabulary = {word: i for i, word in enumerate(words)}
    kind = models.BPE(vocabulary, []) if bpe else models.WordLevel(vocabulary, "<unk>")
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_tokens([AddedToken(each, special=True) for each in added])
    fast.save_pretrained(folder)
    return str(folder)


def merge(folder, paths, **settings):
    merge_files(MergeSettings(paths, str(folder), tokenizer="union", **settings))
    return str(folder)


def row(path, name, token):
    return tensors(path)[name][AutoTokenizer.from_pretrained(path).convert_tokens_to_ids(token)]


def test_rows_are_merged_token_by_token(tmp_path):
    first = model(tmp_path / "a", 0, added=["<s>", "<a>"])
    other = model(tmp_path / "b", 1, [WORDS[0], *WORDS[:0:-1]], added=["<b>", "<s>"])
    out = merge(tmp_path / "out", [first, other], weights=[0.75, 0.25])
    tokenizer = AutoTokenizer.from_pretrained(out)
    for token, number in AutoTokenizer.from_pretrained(first).get_vocab().items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    for name in EMBEDDINGS:
        for token in [*WORDS, "<s>"]:
            mean = 0.75 * row(first, name, token) + 0.25 * row(other, name, token)
            torch.testing.assert_close(row(out, name, token), mean)
        torch.testing.assert_close(row(out, name, "<a>"), row(first, name, "<a>"))
        torch.testing.assert_close(row(out, name, "<b>"), row(other, name, "<b>"))
    inside = "model.layers.0.mlp.up_proj.weight"
    mean = 0.75 * tensors(first)[inside] + 0.25 * tensors(other)[inside]
    torch.testing.assert_close(tensors(out)[inside], mean)


def test_text_is_read_as_before_and_each_models_own_tokens_are_known(tmp_path):
    first = model(tmp_path / "a", 0, added=["<a>"])
    other = model(tmp_path / "b", 1, [*WORDS, "blue"], added=["<b>"])
    out = AutoTokenizer.from_pretrained(merge(tmp_path / "out", [first, other]))
    assert out.tokenize("cat<a>red<b> blue bluecat") == [
        "cat",
        "<a>",
        "red",
        "<b>",
        "blue",
        "<unk>",
    ]
    assert (
        out("cat<a>red")["input_ids"]
        == (AutoTokenizer.from_pretrained(first)("cat<a>red")["input_ids"])
    )


def test_embeddings_grow_by_as_many_rows_as_there_are_new_tokens(tmp_path):
    first = model(tmp_path / "a", 0, rows=5)
    other = model(tmp_path / "b", 1, added=["<b>", "<c>"], rows=9)
    out = merge(tmp_path / "out", [first, other])
    assert tensors(out)["lm_head.weight"].shape[0] == 7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 7
    assert loaded(out)(torch.tensor([[5, 6]])).logits.shape[-1] == 7


def test_a_token_that_two_of_three_models_have_is_their_mean_in_the_third(tmp_path):
    paths = [model(tmp_path / str(i), i, added=["<s>"] if i else []) for i in range(3)]
    out = merge(tmp_path / "out", paths, weights=[0.5, 0.3, 0.2])
    one, two = (row(path, EMBEDDINGS[0], "<s>") for path in paths[1:])
    expected = 0.5 * (one + two) / 2 + 0.3 * one + 0.2 * two
    torch.testing.assert_close(row(out, EMBEDDINGS[0], "<s>"), expected)


def test_models_of_one_tokenizer_are_merged_as_without_a_union(tmp_path):
    paths = [model(tmp_path / str(i), i) for i in range(2)]
    merge_files(MergeSettings(paths, tmp_path / "plain"))
    united, plain = tensors(merge(tmp_path / "out", paths)), tensors(tmp_path / "plain")
    for name, tensor in plain.items():
        tokens = len(WORDS) if name in EMBEDDINGS else None  # rows that pad are the first model's
        assert torch.equal(united[name][:tokens], tensor[:tokens])


def test_a_base_and_a_donor_are_united_too(tmp_path):
    base, first = model(tmp_path / "0", 0), model(tmp_path / "1", 1, added=["<s>"])
    turned = model(tmp_path / "2", 2, [WORDS[0], *WORDS[:0:-1]])
    options = {"method": "task_arithmetic", "base": base, "donor": base}
    out = merge(tmp_path / "out", [first, turned], **options)
    for token in WORDS:
        old, one, two = (row(path, EMBEDDINGS[0], token) for path in (base, first, turned))
        expected = old + (one - old) + (two - old)
        found = row(out, EMBEDDINGS[0], token)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row(out, EMBEDDINGS[0], "<s>"), row(first, EMBEDDINGS[0], "<s>"))


def test_tied_embeddings_stay_tied(tmp_path):
    first = model(tmp_path / "a", 0, added=["<a>"], tied=True)
    other = model(tmp_path / "b", 1, added=["<b>"], tied=True)
    out = loaded(merge(tmp_path / "out", [first, other]))
    assert out.lm_head.weight is out.model.embed_tokens.weight


# what is wrong: one sentence, and nothing is left


def refused(match, tmp_path, paths, **settings):
    with pytest.raises(ValueError, match=match) as caught:
        merge(tmp_path / "out", paths, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tokens_that_no_rule_makes_are_refused(tmp_path):
    first = model(tmp_path / "a", 0, "abcde", bpe=True)
    refused(
        "'f' of .*b is none that was added",
        tmp_path,
        [first, model(tmp_path / "b", 1, "abcdef", bpe=True)],
    )
    refused(
        "cannot be united: their tokenizers differ in their model",
        tmp_path,
        [first, model(tmp_path / "c", 1)],
    )


def test_a_model_without_tokenizer_or_with_too_few_rows_is_refused(tmp_path):
    first = model(tmp_path / "a", 0)
    bare = saved(llama(1, vocab_size=8), tmp_path / "b", tokenizer=False)
    refused("b has no tokenizer.json", tmp_path, [first, bare])
    small = model(tmp_path / "c", 1, rows=4)
    refused("c has 4 rows in .* and a token of the id 4", tmp_path, [first, small])


def test_ids_that_a_tokenizer_would_not_give_are_refused(tmp_path):
    first = model(tmp_path / "a", 0)
    file = tmp_path / "a" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["one"] = 7  # tokens that are added get the first ids that are free
    file.write_text(json.dumps(content))
    refused(
        "would give '<b>' the id 5 and not 8",
        tmp_path,
        [first, model(tmp_path / "b", 1, added=["<b>"])],
    )


def test_configs_are_compared_but_for_the_size_of_the_vocabulary(tmp_path):
    first = model(tmp_path / "a", 0)
    heads = model(tmp_path / "b", 1, rows=9, num_attention_heads=4)
    refused("compute differently: num_attention_heads is 4", tmp_path, [first, heads])


def test_methods_that_measure_models_as_they_are_are_refused():
    probe = ProbeSettings("texts.txt")
    with pytest.raises(ValueError, match="tokenizer='union' moves rows and recall measures"):
        MergeSettings(["a", "b"], "out", method="recall", probe=probe, tokenizer="union")
    with pytest.raises(ValueError, match="tokenizer='donor' is unknown"):
        MergeSettings(["a", "b"], "out", tokenizer="donor")
