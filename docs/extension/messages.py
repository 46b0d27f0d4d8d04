"""The errors and warnings that the package's source holds, as sentences with places left open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from docs.extension.sources import Source

LEFT_OPEN = ("‹", "›")
"""What stands around the name of something that a message puts in when it is made."""

TOLD_WITHIN = {
    "RowError": "Mend it, or leave such rows out: bad_rows='skip'",
    "FormError": "resume from another checkpoint",
    "SnapshotFileError": "put the file back into a folder 'snapshots' beside the checkpoint",
    "MissingSnapshotError": "put the file back into a folder 'snapshots' beside the checkpoint",
    "UnknownLossError": "the merge at its end takes its rule's own balance of old and new",
}
"""What is said with an error of a class, by the message within which a user is told it."""

_WANTED = re.compile(r"\b(must|needs?|requires)\b")
_WARNS = {"rank_zero_warn", "warn"}
_ENDS_A_PROGRAM = {"SystemExit", "KeyboardInterrupt"}


@dataclass(frozen=True)
class Message:
    """Something that a user is told.

    Attributes:
        kind: The exception's class, or ``"warning"``.
        text: The sentence; what it puts in stands between :data:`LEFT_OPEN`.
        path: The file that tells it, from the repository's folder on.
    """

    kind: str
    text: str
    path: Path

    @property
    def wrong(self) -> str:
        """What is wrong: the message up to its advice."""
        return self._parts[0]

    @property
    def advice(self) -> str:
        """What to do: the words after the last colon, full stop or semicolon; "" without any.

        Of an error that is told within another message it is what that says.
        """
        return self._parts[1]

    @property
    def names_what_is_wanted(self) -> bool:
        """Whether what to do follows from it, as from "must be 2 or more"."""
        return bool(_WANTED.search(_without_open(self.text)))

    @property
    def _parts(self) -> tuple[str, str]:
        for mark in (": ", ". ", "; "):
            for at in reversed([each.start() for each in re.finditer(re.escape(mark), self.text)]):
                head, tail = self.text[:at], self.text[at + len(mark) :]
                if _own_words(tail) and len(tail.split()) > 1 < len(_own_words(head).split()):
                    return head, tail
        return self.text, TOLD_WITHIN.get(self.kind, "")


def errors(source: Source) -> list[Message]:
    """Return what a file raises with words of its own, each once, in its order."""
    return _once(_raised(source))


def warnings(source: Source) -> list[Message]:
    """Return what a file warns of."""
    return _once(_warned(source))


def _once(messages: Iterator[Message]) -> list[Message]:
    return list(dict.fromkeys(each for each in messages if len(_own_words(each.text).split()) > 1))


def _raised(source: Source) -> Iterator[Message]:
    for node, names in _with_names(source.tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        kind = ast.unparse(node.exc.func).rpartition(".")[2]
        if kind not in _ENDS_A_PROGRAM and kind[:1].isupper() and node.exc.args:
            yield Message(kind, _text(node.exc.args[-1], names), source.path)


def _warned(source: Source) -> Iterator[Message]:
    for node, names in _with_names(source.tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        if ast.unparse(node.func).rpartition(".")[2] in _WARNS:
            yield Message("warning", _text(node.args[0], names), source.path)


def _with_names(tree: ast.Module) -> Iterator[tuple[ast.AST, Mapping[str, ast.expr]]]:
    """Yield all nodes, each with what the names around it were given, as far as that is text."""
    pending: list[tuple[ast.AST, dict[str, ast.expr]]] = [(tree, {})]
    while pending:
        node, names = pending.pop()
        if isinstance(node, ast.Module | ast.FunctionDef):
            names = names | dict(_given_text(node))
        yield node, names
        pending += [(child, names) for child in reversed(list(ast.iter_child_nodes(node)))]


def _given_text(scope: ast.Module | ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef) else scope.body:
        if not isinstance(node, ast.Assign) or not _is_text(node.value):
            continue
        if isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _text(node: ast.expr, names: Mapping[str, ast.expr]) -> str:
    """Return what an expression reads like when it has become text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, names)
    joins = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
    if joins and (_is_text(node.left) or _is_text(node.right)):
        return _text(node.left, names) + _text(node.right, names)
    if isinstance(node, ast.IfExp):
        choices = [_text(each, names) for each in (node.body, node.orelse)]
        return _open(" or ".join(each.strip(" ,") for each in choices if each.strip(" ,")))
    if isinstance(node, ast.Name) and node.id in names:
        others = {name: value for name, value in names.items() if name != node.id}
        return _text(names[node.id], others)
    return _open(_short_name(node))


def _short_name(node: ast.expr) -> str:
    """Return a word for what an expression stands for; "…" where it has none."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        if node.attr == "__name__" and isinstance(node.value, ast.Call):
            return f"class of {_short_name(node.value.args[0])}"
        return node.attr.strip("_")
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _short_name(node.args[0])
    if isinstance(node, ast.Subscript):
        return _short_name(node.value)
    return "…"


def _open(name: str) -> str:
    start, end = LEFT_OPEN
    inner = name.replace(start, "").replace(end, "")
    return f"{start}{inner}{end}"


def _is_text(node: ast.expr) -> bool:
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return constant or isinstance(node, ast.JoinedStr)


def _own_words(text: str) -> str:
    """Return a text without what is left open in it."""
    words = _without_open(text).split()
    return " ".join(word for word in words if any(c.isalpha() for c in word))


def _without_open(text: str) -> str:
    start, end = LEFT_OPEN
    return "".join(part.rpartition(end)[2] for part in text.split(start))
