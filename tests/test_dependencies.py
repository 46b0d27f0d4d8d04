"""Every package that is imported is declared: always needed, or an extra's and imported late."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


CORE = {normal(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    normal(requirement)
    for extra, requirements in PROJECT["optional-dependencies"].items()
    if extra not in ("docs", "test")
    for requirement in requirements
}


def imports(tree):
    """Yield the packages that a module imports, and whether in a function or for types alone."""
    pending = [(tree, False)]
    while pending:
        node, late = pending.pop()
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        late = late or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0], late
        pending += [(child, late) for child in ast.iter_child_nodes(node)]


def imported():
    """Return each third-party package that the package imports, with the files that do so early."""
    found = {}
    for file in (ROOT / "recall_lightning").rglob("*.py"):
        for name, late in imports(ast.parse(file.read_text())):
            if name not in sys.stdlib_module_names | {"recall_lightning"}:
                files = found.setdefault(name, set())
                files |= set() if late else {str(file.relative_to(ROOT))}
    return found


IMPORTED = imported()


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_what_is_imported_is_declared(name):
    distributions = {normal(each) for each in packages_distributions().get(name, [name])}
    assert distributions & (CORE | EXTRAS), f"{name} is in no list of pyproject.toml"
    if not distributions & CORE:
        assert not IMPORTED[name], f"{name} is an extra's: import it in a function"


@pytest.mark.parametrize("extra", ["docs", "test"])
def test_what_the_tests_and_the_site_install_is_constrained(extra):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constrained = {normal(line) for line in lines if line and not line.startswith("#")}
    assert CORE | {*map(normal, PROJECT["optional-dependencies"][extra])} <= constrained
