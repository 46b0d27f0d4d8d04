import pytest

from recall_lightning.data.instructions.templates import TEMPLATES, RowError, Template, template_of

ROWS = {
    "sst2": ({"sentence": "a fine film", "label": 1}, "positive"),
    "squad_v2": (
        {"context": "c", "question": "q", "answers": {"text": ["north"], "answer_start": [3]}},
        "north",
    ),
    "iwslt2017_en_fr": ({"translation": {"en": "Yes.", "fr": "Oui."}}, "Oui."),
    "race": ({"article": "a", "question": "q", "options": list("wxyz"), "answer": "C"}, "y"),
    "medmcqa": (
        {"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 3, "exp": None},
        "4",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_five_tasks_take_their_data_sets_own_columns(name):
    row, answer = ROWS[name]
    assert template_of(name).example(row).answer == answer
    assert set(template_of(name).columns) <= set(row)


def test_a_question_without_an_answer_is_said_to_have_none():
    row = {"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}}
    example = template_of("squad_v2").example(row)
    assert (example.answer, example.references) == ("unanswerable", ())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sst2", {"label": -1}, "label holds -1, and there are 2 choices"),
        ("sst2", {"label": "good"}, "holds 'good', and no number"),
        ("sst2", {"sentence": " "}, "sentence is empty"),
        ("sst2", {"sentence": None}, "sentence is empty"),
        ("race", {"answer": "E"}, "holds 'E', and not one of"),
        ("race", {"options": []}, "two choices or more"),
        ("race", {"options": "wxyz"}, "lists no choices"),
        ("medmcqa", {"opb": None}, "opb is empty"),
        ("iwslt2017_en_fr", {"translation": {"en": "Yes."}}, r"translation\[fr\] is missing"),
        ("squad_v2", {"answers": {"text": 3}}, "lists no texts"),
    ],
)
def test_a_row_that_does_not_fit_says_why(name, change, said):
    with pytest.raises(RowError, match=said):
        template_of(name).example(ROWS[name][0] | change)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "needs an answer, references, or choices"),
        ({"choices": ["a", "b"]}, "need the column of the right one"),
        ({"answer": "{a}"}, "score='accuracy' is of choices"),
        ({"answer": "{a", "score": "bleu"}, "is no format"),
        ({"answer": "{a}", "score": "f1", "language": "zh"}, "language='zh' is for BLEU"),
        ({"answer": "{a}", "score": "f1", "bleu_tokenizer": "zh"}, "score is 'f1'"),
        ({"choices": "c", "label": "l", "score": "f1"}, "score='f1' is of written answers"),
    ],
)
def test_templates_that_make_no_sense_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Template("{q}", **arguments)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="use sst2, squad_v2"):
        template_of("sst3")
