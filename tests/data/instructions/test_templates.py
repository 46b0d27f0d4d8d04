import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recall_lightning.data.instructions.templates import (
    FORMATS,
    TEMPLATES,
    RowError,
    Template,
    template_of,
)

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


ALPACA = [
    {"instruction": "Sort.", "input": "b, a", "output": "a, b"},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]


@pytest.mark.parametrize("empty", ["", "  ", None, float("nan")])
def test_a_section_vanishes_where_its_column_is_empty(empty):
    template = Template("{q}{#hint} ({hint}){/hint}{^hint}!{/hint}", "{a}", score="f1")
    row = {"q": "Q", "a": "A"}
    assert template.example(row | {"hint": "H"}).prompt == "Q (H)"
    assert template.example(row | {"hint": empty}).prompt == "Q!"
    assert template.example(row).prompt == "Q!"
    assert (template.columns, template.optional_columns) == (["a", "q"], ["hint"])


def test_sections_hold_other_columns_and_sections():
    template = Template("{q}{#a}[{a}{#b}, {b[0]}{/b}]{/a}", "x", score="f1")
    assert template.example({"q": "Q", "a": 1, "b": [2]}).prompt == "Q[1, 2]"
    assert template.example({"q": "Q", "a": 1, "b": []}).prompt == "Q[1]"
    assert template.example({"q": "Q", "b": [2]}).prompt == "Q"


def test_alpaca_rows_need_no_input():
    with_input, without = (template_of("alpaca").example(row).prompt for row in ALPACA)
    assert "Input:\nb, a\n" in with_input
    assert "input" not in without.lower().replace("input that", "")
    assert without.endswith("### Instruction:\nSay hello.\n\n### Response:")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{#a}x", "the section {#a} is never closed"),
        ("x{/a}", "must close the section"),
        ("{#a}{#b}{/a}{/b}", "must close the section"),
        ("{#}x{/}", "names no column"),
        ("{}", "must name a column"),
    ],
)
def test_sections_that_do_not_close_are_refused(pattern, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Template(pattern, "x", score="f1")


def test_a_label_is_the_same_number_however_it_was_written():
    plain = Template("q", choices=("a", "b", "c"), label="l")
    named = Template("q", choices=("a", "b", "c"), label="l", labels=(2, "1", "01"))
    for one in (1, "1", 1.0, "1.0", " 1 ", b"1"):
        assert plain.example({"l": one}).label == named.example({"l": one}).label == 1
    assert plain.example({"l": True}).label == 1
    assert named.example({"l": "01"}).label == 2


@pytest.mark.parametrize(
    "value", [None, float("nan"), "nan", "", 1.5, "1.5", "1_0", "x", float("inf"), 1e30, [1], 3, -1]
)
@pytest.mark.parametrize("labels", [None, ("nope", "nan ", "1")])
def test_a_label_that_is_none_is_never_made_one(value, labels):
    template = Template("q", choices=("a", "b", "c"), label="l", labels=labels)
    if value == "nan" and labels:
        assert template.example({"l": value}).label == 1
        return
    with pytest.raises(RowError, match=r"^l "):
        template.example({"l": value})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": ("1", 1)}, "must all be different"),
        ({"labels": ("A", "B", "C")}, "must be one for each of the 2 choices"),
    ],
)
def test_labels_that_do_not_fit_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Template("q", choices=("a", "b"), label="l", **arguments)


@pytest.mark.parametrize("options", [["w", None], ["w", float("nan")], ["w", ["x"]], ["w", ""]])
def test_a_choice_that_is_no_text_is_never_made_one(options):
    row = ROWS["race"][0] | {"options": options, "answer": "A"}
    with pytest.raises(RowError, match=r"options\[1\]"):
        template_of("race").example(row)


def test_references_may_be_numbers_and_leave_out_what_is_empty():
    row = ROWS["squad_v2"][0] | {"answers": {"text": [None, 1998, " ", float("nan"), "x"]}}
    assert template_of("squad_v2").example(row).references == ("1998", "x")


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("{v:.2f}", "x"),
        ("{v[en]}", "x"),
        ("{v.upper}", "x"),
        ("{v}", {"en": "x"}),
        ("{v}", "\ud83d"),
    ],
)
def test_what_cannot_be_written_into_a_prompt_is_a_bad_row(pattern, value):
    with pytest.raises(RowError, match="v"):
        Template(pattern, "x", score="f1").example({"v": value})


def test_a_column_may_have_any_name():
    row = {"a b": 1, "c.d": 2, "e[f]": 3}
    assert Template("{a b} {c.d} {e[f]}", "x", score="f1").example(row).prompt == "1 2 3"


def test_a_system_prompt_stands_before_the_prompt_unless_it_is_empty():
    template = Template("{q}", "x", score="f1", system="{#s}{s}{/s}")
    assert template.example({"q": "Q", "s": "S"}).before == (("system", "S"),)
    assert template.example({"q": "Q"}).before == ()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "en", "fr", "role", "content", "from"]), inner)
    ),
    max_leaves=8,
)
COLUMNS = sorted({name for row, _ in ROWS.values() for name in row})
COLUMNS += ["instruction", "input", "output", "messages", "conversations", "system"]


@pytest.mark.parametrize("name", [*TEMPLATES, *FORMATS])
@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw imports
@given(row=st.dictionaries(st.sampled_from(COLUMNS), ANYTHING))
def test_of_any_row_there_is_an_example_or_a_reason(name, row):
    template = template_of(name)
    row = dict.fromkeys(template.columns) | row
    try:
        made = template.example(row)
    except RowError as error:
        assert str(error)  # noqa: PT017
    else:
        assert made.prompt.strip()
        assert made.answer.strip()
