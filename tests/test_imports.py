"""Which part of the package may import which, and that none does otherwise."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "recall_lightning"

# What is plain torch comes first. A module of cli is a room of its own, as main comes after compare
# and fit before it; "" are the modules beside the rooms, which all may import.
MAY_IMPORT = {
    "": [],
    "weights": [],
    "measuring": ["weights"],
    "merging": ["measuring", "weights"],
    "metrics": ["weights"],
    "callbacks": ["merging", "measuring", "metrics", "weights"],
    "data": ["measuring", "weights"],
    "models": ["callbacks", "measuring", "merging", "weights"],
    "recall": ["callbacks", "merging", "measuring", "metrics", "weights"],
    "methods": ["recall", "callbacks", "data", "merging", "measuring", "weights"],
    "export": [
        *("cli", "recall", "methods", "models", "data"),
        *("metrics", "merging", "measuring", "weights"),
    ],
    "cli": ["merging", "weights"],
    "cli.merge": ["cli", "merging", "measuring", "weights"],
    "cli.retune": ["cli", "recall", "weights"],
    "cli.run_config": ["cli", "methods", "callbacks", "data", "weights"],
    "report": ["cli.run_config", "recall", "metrics", "weights"],
    "cli.report": ["cli", "report"],
    "cli.recipes": ["cli"],
    "cli.fit": [
        "cli",
        "cli.run_config",
        "report",
        "methods",
        "recall",
        "models",
        "callbacks",
        "data",
        "metrics",
        "merging",
        "weights",
    ],
    "compare": [
        "cli",
        "cli.run_config",
        "cli.fit",
        "report",
        "methods",
        "models",
        "data",
        "metrics",
        "weights",
    ],
    "doctor": ["cli", "methods", "recall", "models", "data", "merging", "weights"],
    "cli.main": [
        "cli",
        "cli.merge",
        "cli.retune",
        "cli.report",
        "cli.fit",
        "compare",
        "export",
        "doctor",
    ],
    "__main__": ["cli.main"],
}
PLAIN_TORCH = ("", "weights", "measuring", "merging")
MAY_USE_PRIVATE = {  # a callback outside of callbacks/ asks the same of the Trainer
    "callbacks._trainer": ["recall", "methods", "models", "cli.fit", "cli.run_config"],
}


class Import(NamedTuple):
    """That a file imports a module; ``when`` is "loaded" or "called"."""

    file: str
    line: int
    name: str
    when: str

    def __str__(self):
        return f"{self.file}:{self.line} imports {self.name}"


def name_of(path, package=PACKAGE):
    """Return a file's dotted name, without the package's own: "" for its ``__init__``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def file_of(module):
    """Return a module's file as a sentence names it."""
    return shown(MODULES[module]) if module in MODULES else module


def shown(path):
    return str(path.relative_to(PACKAGE.parent))


def imports_of(text, file="", modules=()):
    """Yield the imports in a module's text, in functions too, but not those for types alone."""
    pending = [(ast.parse(text), "loaded")]
    while pending:
        node, when = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += [(each, when) for each in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, each.name, when) for each in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports by dots: write the whole name"
            for each in node.names:
                inside = f"{node.module}.{each.name}"
                own = inside.removeprefix(f"{PACKAGE.name}.") in modules
                yield Import(file, node.lineno, inside if own else node.module, when)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        when = "called" if function else when
        pending += [(child, when) for child in ast.iter_child_nodes(node)]


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {
    module: list(imports_of(path.read_text(), shown(path), MODULES))
    for module, path in MODULES.items()
}


def own(imports):
    """Yield those of the package's own modules, with their names in it."""
    for each in imports:
        head, _, module = each.name.partition(".")
        if head == PACKAGE.name:
            yield each, module


def room_of(module):
    """Return the room that a module lies in."""
    if module in MAY_IMPORT or module == "":
        return module
    room = module.partition(".")[0]
    return room if room in MAY_IMPORT else ""


def wrong_ways():
    for module, imports in IMPORTS.items():
        room = room_of(module)
        for each, target in own(imports):
            other = room_of(target)
            if target == "":
                yield f"{each} itself: name the module that holds what is wanted"
            elif other not in ("", room, *MAY_IMPORT[room]) and module != "":
                allowed = ", ".join(MAY_IMPORT[room]) or "nothing of the package"
                yield f"{each} ({file_of(target)}), but {room or module} may import {allowed}"


def private_from_outside():
    for module, imports in IMPORTS.items():
        for each, target in own(imports):
            *folders, _ = [*target.split("."), ""]
            private = next((i for i, part in enumerate(folders) if part.startswith("_")), 0)
            owner = ".".join(folders[:private])
            if not private or f"{module}.".startswith(f"{owner}."):
                continue
            name = ".".join(folders[: private + 1])
            if room_of(module) not in MAY_USE_PRIVATE.get(name, []):
                yield f"{each} ({file_of(target)}), which is private to {owner}"


def loaded_with(module):
    """Return the modules that importing one loads, itself and the packages above them too."""
    found, pending = set(), [module]
    while pending:
        each = pending.pop()
        if each in found or each not in MODULES:
            continue
        found.add(each)
        parts = each.split(".") if each else []
        pending += [".".join(parts[:end]) for end in range(len(parts))]
        pending += [target for i, target in own(IMPORTS[each]) if i.when == "loaded"]
    return sorted(found, key=lambda each: each != module)


def lightnings():
    told = set()
    for module in [each for each in MODULES if each and room_of(each) in PLAIN_TORCH]:
        for each in loaded_with(module):
            for found in IMPORTS[each]:
                at_once = found.when == "loaded" or each == module
                if found.name.partition(".")[0] == "lightning" and at_once and found not in told:
                    told.add(found)
                    via = "" if each == module else f", and {file_of(module)} loads that file"
                    yield f"{found}{via}: {room_of(module) or module} is plain torch"


def fail_with(sentences):
    if found := list(sentences):
        pytest.fail("\n".join(found), pytrace=False)


def test_imports_run_one_way():
    fail_with(wrong_ways())


def test_every_folder_of_the_package_has_a_place_in_that_order():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {room for room in MAY_IMPORT if room and "." not in room} - {"__main__"}


def test_what_may_be_imported_is_itself_an_order():
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert order.index("weights") < order.index("merging") < order.index("recall")


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {target for _, target in own(imports) if target != module}
        for module, imports in IMPORTS.items()
        if module != ""  # gives names of all rooms when asked
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        fail_with([" imports ".join(map(file_of, reversed(error.args[1])))])


def test_private_folders_are_imported_by_their_owner_alone():
    fail_with(private_from_outside())


def test_weights_measuring_and_merging_never_import_lightning():
    fail_with(lightnings())


def test_tests_and_benchmarks_do_not_import_each_other():
    root = PACKAGE.parent
    for folder, other in (("tests", "benchmarks"), ("benchmarks", "tests")):
        for path in (root / folder).rglob("*.py"):
            for each in imports_of(path.read_text(), shown(path)):
                if each.name.partition(".")[0] == other:
                    pytest.fail(f"{each}: {folder} must not import {other}", pytrace=False)


def test_tests_start_processes_by_one_helper_and_are_marked():
    tests = PACKAGE.parent / "tests"
    for path in tests.rglob("*.py"):
        text, name = path.read_text(), shown(path)
        imported = {each.name: each for each in imports_of(text, name)}
        for module in ("subprocess", "multiprocessing"):
            if module in imported and name != "tests/support/processes.py":
                pytest.fail(
                    f"{imported[module]}: start processes by tests.support.processes", pytrace=False
                )
        if path.stem.startswith("test_") and "tests.support.processes" in imported:
            assert "pytest.mark.processes" in text, f"{name} starts processes: mark its tests so"


def test_imports_are_found_wherever_they_stand():
    text = """
import one.two
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import types_alone
class A:
    from three import four
    def f(self):
        from five.six import seven
try:
    import eight
except ImportError:
    pass
"""
    found = {each.name: each.when for each in imports_of(text) if each.name != "typing"}
    assert found == {
        "one.two": "loaded",
        "three": "loaded",
        "five.six": "called",
        "eight": "loaded",
    }
