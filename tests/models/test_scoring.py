import unicodedata

import pytest
import torch
from torchmetrics.text import SQuAD

from recall_lightning.models.scoring import (
    answer_log_likelihood,
    chosen,
    exact_match,
    f1,
    right_predictions,
    squad_exact_match,
    without_refusals,
)

PAIRS = [
    ("in the north of France", ["northern France", "north of France"]),
    ("The Eiffel Tower!", ["eiffel tower"]),
    ("blue", ["red", "green"]),
    ("a b b", ["b b c"]),
    ("3.14", ["314"]),
    ("«Paris»", ["Paris"]),
]


@pytest.mark.parametrize(("answer", "references"), PAIRS)
def test_squad_scores_of_answered_questions_are_torchmetrics(answer, references):
    metric = SQuAD()
    answers = {"answer_start": [0] * len(references), "text": references}
    metric.update([{"prediction_text": answer, "id": "0"}], [{"answers": answers, "id": "0"}])
    expected = metric.compute()
    found = squad_exact_match(answer, references)
    assert 100 * found == pytest.approx(expected["exact_match"].item())
    assert 100 * f1(answer, references) == pytest.approx(expected["f1"].item())


@pytest.mark.parametrize("score", [exact_match, squad_exact_match, f1])
def test_no_answer_is_right_where_there_is_none(score):
    assert score("", []) == 1
    assert score("Paris", []) == score("", ["Paris"]) == 0


@pytest.mark.parametrize("score", [squad_exact_match, f1])
def test_squads_script_passes_over_references_without_a_word(score):
    assert score("", ["the", "Paris"]) == 0
    assert score("", ["?"]) == 1  # all that is left is that there is no answer


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("5", "-5"), ("314", "3.14"), ("50", "50%"), ("1000", "1,000"), ("x", "X"), ("an x", "x")],
)
def test_exact_match_is_exact(answer, reference):
    assert exact_match(answer, [reference]) == 0
    assert exact_match(f" {reference}\n", ["other", reference]) == 1


def test_how_a_letter_is_composed_is_no_difference():
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != parted
    assert exact_match(composed, [parted]) == 1


class Fixed:
    """Puts out logits ``(B, L, V)``; of single rows those of their first token's number."""

    def __init__(self, logits):
        self.table = logits

    def __call__(self, input_ids, attention_mask):
        self.logits = self.table[input_ids[:, 0]]
        return self


def rows(labels):
    ids = torch.arange(len(labels))[:, None].expand(labels.shape)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_log_likelihood_is_the_sum_over_labels_one_by_one():
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = labels[1, 4] = -100
    found, tokens = answer_log_likelihood(Fixed(logits), rows(labels))
    for row in range(2):
        places = [i for i in range(1, 5) if labels[row, i] != -100]
        one_by_one = [logits[row, i - 1].log_softmax(-1)[labels[row, i]] for i in places]
        torch.testing.assert_close(found[row], torch.stack(one_by_one).sum())
        assert tokens[row] == len(places)


def choose(logits, labels, normalise="tokens", counts=(2,), sizes=(4, 4)):
    asked = {"choices": rows(labels), "counts": torch.tensor(counts), "bytes": torch.tensor(sizes)}
    return chosen(Fixed(logits), asked, normalise).tolist()


@pytest.mark.parametrize(("normalise", "right"), [("none", 0), ("tokens", 1), ("bytes", 0)])
def test_length_counts_as_asked(normalise, right):
    """Of four equally likely tokens one choice has one, the other three of which two are sure."""
    logits = torch.zeros(2, 4, 4)
    logits[1, 0, 1] = logits[1, 1, 1] = 50.0
    logits[1, 2, 1] = -1.0
    labels = torch.tensor([[-100, 1, -100, -100], [-100, 1, 1, 1]])
    assert choose(logits, labels, normalise) == [right]


def test_of_equally_likely_answers_the_first_is_chosen():
    assert choose(torch.zeros(2, 2, 4), torch.tensor([[-100, 1], [-100, 2]])) == [0]


def test_an_impossible_answer_is_not_chosen():
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 1] = -torch.inf
    assert choose(logits, torch.tensor([[-100, 1], [-100, 2]])) == [1]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_none_is_chosen_where_a_likelihood_is_no_number(broken):
    logits = torch.zeros(4, 2, 4)
    logits[1, 0, 3] = broken
    labels = torch.tensor([[-100, 1], [-100, 2], [-100, 1], [-100, 2]])
    assert choose(logits, labels, counts=(2, 2), sizes=(1,) * 4) == [-1, 0]


def test_a_prediction_of_logits_that_are_no_numbers_is_neither_right_nor_wrong():
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[0, nan], [0, inf], [-inf, -inf], [0, -inf], [0, 1]])
    found = right_predictions(logits, torch.zeros(5).long())
    torch.testing.assert_close(found, torch.tensor([nan, nan, nan, 1.0, 0.0]), equal_nan=True)


@pytest.mark.parametrize("score", [exact_match, squad_exact_match, f1])
def test_data_may_spell_out_that_there_is_no_answer(score):
    def scored(answer, references):
        return score(*without_refusals(answer, references, "unanswerable"))

    assert scored("unanswerable", []) == scored("Unanswerable", ["unanswerable"]) == 1
    assert scored("", ["unanswerable"]) == scored("unanswerable", ["unanswerable", "Paris"]) == 1
    assert scored("Paris", ["unanswerable", "Paris"]) == 1
    assert scored("unanswerable", ["Paris"]) == scored("Paris", ["unanswerable"]) == 0
