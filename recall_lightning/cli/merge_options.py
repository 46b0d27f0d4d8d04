"""What merge methods can be told, read from their source: importing them would import torch.

``recall-lightning merge --help`` is there at once because of this.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser

from recall_lightning.merging import functional


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


def methods_with(argument: str) -> list[str]:
    """Name the methods that are given something for each weight.

    Example:
        >>> methods_with("base")
        ['task_arithmetic', 'ties', 'dare', 'breadcrumbs']
    """
    return [
        method
        for method in functional.FILES
        if argument in (each.arg for each in _function(method).args.args)
    ]


def options() -> dict[str, Option]:
    """Return every method's options by name.

    Example:
        >>> options()["ridge"]
        Option(name='ridge', methods=('subspace',), text='...', required=False, default=0.01)
    """
    found: dict[str, Option] = {}
    for method in functional.FILES:
        arguments = _function(method).args
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            name = argument.arg
            if name in found:
                first = found[name]
                found[name] = Option(
                    name, (*first.methods, method), first.text, first.required, first.default
                )
                continue
            value = None if default is None else ast.literal_eval(default)
            found[name] = Option(name, (method,), _text(method, name), default is None, value)
    return found


@cache
def _function(method: str) -> ast.FunctionDef:
    """Find a method's definition."""
    file = Path(functional.__path__[0]) / f"{functional.FILES[method]}.py"
    module = ast.parse(file.read_text(encoding="utf-8"))
    return next(
        node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == method
    )


def _text(method: str, argument: str) -> str:
    """Return what a method's docstring says of an argument."""
    parameters = docstring_parser.parse(ast.get_docstring(_function(method)) or "").params
    text = next(each.description for each in parameters if each.arg_name == argument) or ""
    return " ".join(text.replace("``", "").split())
