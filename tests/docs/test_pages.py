"""What the site is to show is on it: every rule, method, command and public name has its place."""

import ast
import importlib
import re
from functools import cache

import pytest

from docs.extension.evidence import of_method, of_rule, tables
from docs.extension.messages import TOLD_WITHIN, Message, errors, warnings
from docs.extension.options import groups_of, parser_of
from docs.extension.reference import errors_page
from docs.extension.sources import PACKAGE, ROOT, Source, sources
from docs.pictures import PICTURES
from docs.pictures.style import DARK, LIGHT
from recall_lightning.cli.main import _COMMANDS
from recall_lightning.merging.rules.base import RULES
from recall_lightning.methods import FILES

DOCS = ROOT / "docs"
TEXT = "\n".join(page.read_text() for page in sorted(DOCS.rglob("*.md")))
DOCUMENTED = set(re.findall(r"^\.\. auto(?:class|function|data):: ([\w.]+)", TEXT, re.MULTILINE))
OWN_RULES = [name for name, rule in RULES.items() if rule.__module__.startswith(PACKAGE.name)]
PUBLIC = [
    "recall_lightning",
    *(
        f"recall_lightning.{name}"
        for name in ("callbacks", "data", "methods", "metrics", "metrics.figures", "models")
    ),
    *("recall_lightning.merging.functional", "recall_lightning.merging.rules"),
    "recall_lightning.measuring.predictions",
]


@cache
def messages(read):
    """Return what the whole package raises or warns of."""
    return [message for each in sources() for message in read(each)]


WITHOUT_ADVICE = {
    # python's own way of saying that a name is not there
    "module ‹package› has no attribute ‹name›",
    "there is no ‹kind› ‹name›",
    # these hand on what another message says, with its advice
    "‹pattern› is no format: ‹error›",
    "the adapters of ‹module›: ‹error›",
    "the adapter of ‹module›: ‹error›",
    "‹where›, ‹first›. Mend it, or leave such rows out: bad_rows='skip'",
    # LAPACK fails at finite numbers
    "the low-rank updates cannot be decomposed: ‹error›",
    # a run that another process shows, or the installation: nobody's input
    "training ended before all tasks were trained and validated",
    "‹history› merges of ‹MERGES›, with the shares ‹shares›",
    "the checkpoint holds no state of RecallCallback, but of ‹…›",
    "resumed after the first epoch, weights end up to ‹apart› apart",
}


def source(text):
    return Source(PACKAGE / "shown.py", ast.parse(text))


def sections(page):
    return re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", [*OWN_RULES, "product"])
def test_every_rule_has_a_page_with_formula_failures_and_evidence(name):
    page = DOCS / "how" / "rules" / f"{name}.md"
    assert sections(page)[:3] == ["Formula", "When it fails", "Evidence"]
    assert "$$" in page.read_text()


@pytest.mark.parametrize("name", sorted(set(FILES.values())))
def test_every_method_has_a_page_with_formula_failures_and_evidence(name):
    page = DOCS / "how" / "methods" / f"{name}.md"
    assert sections(page)[:3] == ["Formula", "When it fails", "Evidence"]


def test_every_method_shows_its_own_rows():
    shown = re.findall(r"^```{evidence-of-method} (\w+)$", TEXT, re.MULTILINE)
    assert sorted(shown) == sorted(FILES)


def test_every_command_has_a_page():
    assert all(f"commands/{name}\n" in TEXT for name in _COMMANDS)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module):
    found = importlib.import_module(module)
    lacking = []
    for name in found.__all__:
        thing = getattr(found, name)
        home = f"{getattr(thing, '__module__', module)}.{getattr(thing, '__qualname__', name)}"
        ends = {each for each in DOCUMENTED if each.rpartition(".")[2] == name}
        if not ends & {f"{module}.{name}", home} and not any(
            getattr(importlib.import_module(each.rpartition(".")[0]), name, None) is thing
            for each in ends
        ):
            lacking.append(name)
    assert lacking == []


def test_rows_are_read_from_the_tables_of_measurements():
    text = "## a: of it\n\nhigher is better\n\n| method | average |\n|---|---|\n| x † | 1 |\n"
    (table,) = tables(text)
    assert (table.section, table.direction) == ("a", "higher")
    assert table.row("x") == {"method": "x †", "average": "1"}
    assert table.row("y") is None


def test_a_methods_evidence_is_its_row_of_every_stream():
    page = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    average, forgetting = re.search(
        r"^\| ewc \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE
    ).groups()
    shown = "\n".join(of_method("ewc"))
    assert f"| digits_permuted\N{NO-BREAK SPACE}↑ | {average} | {forgetting} |" in shown
    assert of_method("none of them") == []


def test_a_rules_evidence_is_the_tables_that_compare_it():
    shown = "\n".join(of_rule("kfac_subspace"))
    assert "**kfac_subspace**" in shown
    assert "**subspace**" not in shown
    assert of_rule("none of them") == []


def test_errors_are_read_with_what_they_put_in_left_open():
    text = """
AGAIN = "do it again"
def f(x):
    if x:
        raise ValueError(f"x={x!r} is {type(x).__name__}, not " "1: give 1, or 2")
    raise KeyError(f"nothing at {x.name}: {AGAIN}")
"""
    found = errors(source(text))
    assert [each.text for each in found] == [
        "x=‹x› is ‹class of x›, not 1: give 1, or 2",
        "nothing at ‹name›: do it again",
    ]
    assert found[0].advice == "give 1, or 2"
    assert found[0].wrong == "x=‹x› is ‹class of x›, not 1"


def test_what_only_tells_again_what_another_raised_is_left_out():
    text = 'def f(e):\n    raise ValueError(f"{e}") from e\n    raise SystemExit("so it ends")'
    assert errors(source(text)) == []


def test_a_message_without_advice_is_whole():
    message = Message("ValueError", "the whole of it is wrong", PACKAGE)
    assert (message.wrong, message.advice) == (message.text, "")


@pytest.mark.parametrize("told", ["2 must be 3", "2 needs 3"])
def test_a_message_that_names_what_is_wanted_needs_no_advice(told):
    assert Message("ValueError", f"x=‹must› {told}", PACKAGE).names_what_is_wanted
    assert not Message("ValueError", "x=‹must› is 2", PACKAGE).names_what_is_wanted


def test_every_error_says_what_to_do():
    lacking = {m.text for m in messages(errors) if not m.advice and not m.names_what_is_wanted}
    assert lacking == WITHOUT_ADVICE


@pytest.mark.parametrize("kind", TOLD_WITHIN)
def test_what_is_told_with_an_error_stands_in_a_message(kind):
    found = messages(errors) + messages(warnings)
    assert any(m.kind == kind for m in found)
    assert any(m.kind != kind and TOLD_WITHIN[kind] in m.text for m in found)


def test_warnings_are_read_too():
    found = warnings(source('rank_zero_warn(f"{x} was never read: pass y=…, or leave it")'))
    assert [each.advice for each in found] == ["pass y=…, or leave it"]


def test_the_page_of_errors_has_what_users_meet():
    page = "\n".join(errors_page())
    assert "must be a fraction of the task in (0, 1] (float) or a positive" in page
    found = {each.path for each in messages(errors)}
    assert len(found) > 80
    assert all(f"``{path}``" in page for path in found)


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_option_that_a_parser_takes_is_on_its_page(command):
    parser = parser_of(command)
    shown = {name for group in groups_of(parser) for each in group.options for name in each.names}
    taken = {name for action in parser._actions for name in action.option_strings}
    help_alone = {n for n in taken if n.endswith((".help", "+")) or n in ("-h", "--help")}
    help_alone |= {name for name in taken if " --> " in name}  # links between options
    hidden = {
        name
        for action in parser._actions
        for name in action.option_strings
        if action.help == "==SUPPRESS==" or type(action).__name__ == "_ActionConfigLoad"
    }
    assert taken - help_alone - hidden - shown == set()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_the_same_whenever_they_are_drawn(name):
    light, dark = (colours.svg(PICTURES[name]) for colours in (LIGHT, DARK))
    assert light == LIGHT.svg(PICTURES[name])
    assert light != dark
