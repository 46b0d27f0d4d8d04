import pytest
import sacrebleu
import torch

from recall_lightning.models.bleu import Bleu

ANSWERS = [
    "the cat sat on the mat",
    "",
    "a dog, it seems",
    "there is no cat here at all",
    "我喜欢吃苹果。",
]
REFERENCES = [
    ["the cat sat on the mat", "a cat sat"],
    ["a b c d"],
    ["it seems a dog", "a dog it seems", "a dog"],
    ["there is no cat here"],
    ["我喜欢苹果。"],
]


def score(answers, references, size=2, **kwargs):
    bleu = Bleu(**kwargs)
    for start in range(0, len(answers), size):
        bleu.update(answers[start : start + size], references[start : start + size])
    return bleu.compute().item()


@pytest.mark.parametrize("tokenizer", ["13a", "zh", "char", "intl", "none"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_it_is_sacrebleus_of_the_whole_set(tokenizer, size):
    most = max(map(len, REFERENCES))
    padded = zip(*[own + [None] * (most - len(own)) for own in REFERENCES], strict=True)
    expected = sacrebleu.corpus_bleu(ANSWERS, list(padded), tokenize=tokenizer).score / 100
    assert expected > 0
    assert score(ANSWERS, REFERENCES, size, tokenizer=tokenizer) == pytest.approx(expected)


def test_a_row_without_references_is_compared_with_the_empty_text():
    answers, references = ["", "the cat sat on the mat"], [[], ["the cat sat on the mat"]]
    assert score(answers, references) == 1
    assert score(["a dog", answers[1]], references) < 1
    assert score(["a dog", answers[1]], references) == score(
        ["a dog", answers[1]], [[""], references[1]]
    )


@pytest.mark.parametrize("answers", [[""], []])
def test_of_no_word_at_all_it_is_zero(answers):
    assert score(answers, [[] for _ in answers]) == 0


def test_one_answer_without_predictions_leaves_the_set_without_a_score():
    bleu = Bleu()
    bleu.update(["a b c d"], [["a b c d"]], torch.tensor([True]))
    assert bleu.compute() == 1
    bleu.update(["a b c d"], [["a b c d"]], torch.tensor([False]))
    assert bleu.compute().isnan()
    bleu.reset()
    bleu.update(["a b c d"], [["a b c d"]])
    assert bleu.compute() == 1
