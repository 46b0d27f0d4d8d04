"""The gallery's examples are as the gallery reads them; the site's build is what runs them."""

import ast
import json
import re
from pathlib import Path

import pytest
from sphinx_gallery.py_source_parser import split_code_and_text_blocks

from docs.notebooks import SCRIPTS, notebook_of, place_of

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*/*.py"))
RUN = [example for example in EXAMPLES if example.stem.startswith("plot_")]
MOST_LINES = 100


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def titled(text):
    """Tell whether a text begins with a title, underlined to its length, and says more."""
    title, line, *more = text.strip().splitlines()
    return re.fullmatch(r"=+", line) and len(line) >= len(title) and any(map(str.strip, more))


def draws(code):
    """Tell whether code has a figure of pyplot, or a cell that ends with one of the package's."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    if any(ast.unparse(call.func) == "plt.subplots" for call in calls):
        return True
    last = ast.parse(code).body[-1]
    return isinstance(last, ast.Expr) and "_figure(" in ast.unparse(last)


def cells(path):
    return [
        block.content for block in split_code_and_text_blocks(str(path))[1] if block[0] == "code"
    ]


def test_there_are_a_dozen_that_are_run():
    assert len(RUN) >= 12


@each(EXAMPLES)
def test_an_example_begins_with_a_title_and_what_one_sees(path):
    kind, text, _ = split_code_and_text_blocks(str(path))[1][0]
    assert kind == "text"
    assert titled(text)


@each(EXAMPLES)
def test_an_example_is_short_enough_to_copy(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@each(EXAMPLES)
def test_an_example_draws_its_point(path):
    assert any(map(draws, cells(path)))


@each(RUN)
def test_an_example_that_is_run_is_seeded(path):
    assert re.search(r"seed_everything\(0|--seeds", path.read_text())


def test_sections_are_those_of_the_site_in_their_order():
    conf = ast.parse((ROOT / "docs" / "conf.py").read_text())
    (listed,) = [
        ast.literal_eval(node.value)
        for node in conf.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECTIONS"
    ]
    assert set(listed) == {path.parent.name for path in EXAMPLES}
    for section in listed:
        header = (ROOT / "examples" / section / "GALLERY_HEADER.rst").read_text()
        title, line, _, said = header.splitlines()
        assert len(line) == len(title)
        assert said


def test_pictures_of_what_the_build_does_not_run_are_kept():
    for path in set(EXAMPLES) - set(RUN):
        named = re.findall(r"(?:image|literalinclude):: (/\S+)|path = '(\S+)'", path.read_text())
        assert len(named) >= 2, f"{path.name} names neither picture nor thumbnail"
        for file in [one.lstrip("/") or other for one, other in named]:
            assert (ROOT / "docs" / file).is_file(), f"{path.name}: {file} is missing"


@each(SCRIPTS)
def test_notebooks_are_in_step_with_their_scripts(path):
    kept = json.loads(place_of(path).read_text())
    assert kept == notebook_of(path), "run make notebooks"


def test_every_notebook_is_of_a_script():
    assert {place_of(path) for path in SCRIPTS} == set((ROOT / "notebooks").glob("*.ipynb"))
