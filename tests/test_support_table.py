"""The table of what is supported names tests that there are."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "support.md").read_text()
TESTS = dict(re.findall(r"^- ([\w-]+): `(.+)`$", TEXT, re.MULTILINE))


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_named_exists():
    for test in TESTS.values():
        path, name = test.split("::")
        assert name in functions_of(path), test


def test_every_cell_says_what_it_is_and_names_its_test():
    cells = [
        cell.strip()
        for line in TEXT.splitlines()
        if line.startswith("| ") and not line.startswith("| |")
        for cell in line.strip("|").split("|")[1:]
    ]
    assert len(cells) > 60
    for cell in filter(None, cells):
        assert re.match(r"tested \[|refused\b|untested\b", cell), cell


def test_names_in_cells_and_in_the_list_are_the_same():
    tables = TEXT.partition("## The tests")[0]
    assert set(re.findall(r"\[([\w-]+)\]", tables)) == set(TESTS)
