import pytest
import torch
from torchmetrics.text import SQuAD

from recall_lightning.models.scoring import answer_log_likelihood, chosen, exact_match, f1

PAIRS = [
    ("in the north of France", ["northern France", "north of France"]),
    ("The Eiffel Tower!", ["eiffel tower"]),
    ("blue", ["red", "green"]),
    ("a b b", ["b b c"]),
]


@pytest.mark.parametrize(("answer", "references"), PAIRS)
def test_scores_of_answered_questions_are_torchmetrics(answer, references):
    metric = SQuAD()
    answers = {"answer_start": [0] * len(references), "text": references}
    metric.update([{"prediction_text": answer, "id": "0"}], [{"answers": answers, "id": "0"}])
    expected = metric.compute()
    assert 100 * exact_match(answer, references) == pytest.approx(expected["exact_match"].item())
    assert 100 * f1(answer, references) == pytest.approx(expected["f1"].item())


@pytest.mark.parametrize("score", [exact_match, f1])
def test_no_answer_is_right_where_there_is_none(score):
    assert score("", []) == 1
    assert score("Paris", []) == score("", ["Paris"]) == 0


def test_log_likelihood_is_the_sum_over_labels_one_by_one():
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = labels[1, 4] = -100
    found, tokens = answer_log_likelihood(logits, labels)
    for row in range(2):
        places = [i for i in range(1, 5) if labels[row, i] != -100]
        one_by_one = [logits[row, i - 1].log_softmax(-1)[labels[row, i]] for i in places]
        torch.testing.assert_close(found[row], torch.stack(one_by_one).sum())
        assert tokens[row] == len(places)


@pytest.mark.parametrize(("normalise", "right"), [("none", 0), ("tokens", 1), ("bytes", 0)])
def test_length_counts_as_asked(normalise, right):
    """Of four equally likely tokens one choice has one, the other three of which two are sure."""

    class Output:
        logits = torch.zeros(2, 4, 4)

    Output.logits[1, 0, 1] = Output.logits[1, 1, 1] = 50.0
    Output.logits[1, 2, 1] = -1.0
    labels = torch.tensor([[-100, 1, -100, -100], [-100, 1, 1, 1]])
    questions = {
        "choices": {"input_ids": labels, "attention_mask": labels, "labels": labels},
        "counts": torch.tensor([2]),
        "bytes": torch.tensor([4, 4]),
    }
    assert chosen(lambda **_: Output, questions, normalise).tolist() == [right]
