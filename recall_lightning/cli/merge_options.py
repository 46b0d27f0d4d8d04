"""What merge methods can be told, read from their source: importing them would import torch.

``recall-lightning merge --help`` is there at once because of this.
"""

import ast
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser

from recall_lightning import merging
from recall_lightning.cli.plain_text import plain


@dataclass(frozen=True)
class Option:
    """An argument of a merge method that the command line offers.

    Attributes:
        name: As the function has it.
        methods: The methods that have it.
        text: What the first of them says of it.
        required: Whether it has no default.
        default: It.
    """

    name: str
    methods: tuple[str, ...]
    text: str
    required: bool
    default: Any = None


def method_names() -> list[str]:
    """Name the merge methods that there are.

    Example:
        >>> "linear" in method_names()
        True
    """
    return list(_functions())


def methods_with(argument: str) -> list[str]:
    """Name the methods that are given something for each weight.

    Example:
        >>> methods_with("base")
        ['task_arithmetic', 'ties', 'dare', 'breadcrumbs']
    """
    return [
        method
        for method, function in _functions().items()
        if argument in (each.arg for each in function.args.args)
    ]


def options() -> dict[str, Option]:
    """Return every method's options by name.

    Example:
        >>> options()["ridge"].methods, options()["ridge"].default
        (('regmean',), 0.01)
    """
    found: dict[str, Option] = {}
    for method, function in _functions().items():
        arguments = function.args
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            name, value = argument.arg, None if default is None else ast.literal_eval(default)
            first = found.get(name) or Option(name, (), _text(function, name), not default, value)
            found[name] = replace(first, methods=(*first.methods, method))
    return found


@cache
def _functions() -> dict[str, ast.FunctionDef]:
    """Find the functions that stand beside a record, by their names, which are the methods'."""
    found: dict[str, ast.FunctionDef] = {}
    for file in sorted(Path(merging.__path__[0], "functional").glob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        calls = [node.value for node in body if isinstance(node, ast.Assign)]
        recorded = {
            ast.unparse(call.args[0])
            for call in calls
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "MergeMethod"
        }
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        found |= {each.name: each for each in functions if each.name in recorded}
    return found


def _text(function: ast.FunctionDef, argument: str) -> str:
    """Return what a function's docstring says of an argument."""
    parameters = docstring_parser.parse(ast.get_docstring(function) or "").params
    text = next(each.description for each in parameters if each.arg_name == argument) or ""
    return " ".join(plain(text).split())
