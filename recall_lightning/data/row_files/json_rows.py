"""Rows in JSON: an object a line, or an array of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.cells import checked
from recall_lightning.data.row_errors import Row, RowError
from recall_lightning.data.row_files.opening import opened

_BLANK = re.compile(r"[ \t\r\n\ufeff]*")  # files that were joined keep their byte order marks
_NO_OBJECT = "it is no JSON object"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RowError:
    named = dict(pairs)
    if len(named) == len(pairs):
        return named
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return RowError(f"it names {twice!r} twice")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_json(file: str, encoding: str | None = None) -> Iterator[Row]:
    r"""Read the objects of a file: one or more a line, or of an array, which may span lines.

    Args:
        file: Its path.
        encoding: What it is written in, by default UTF-8.

    Raises:
        MisconfigurationException: If an array is broken off or its entries cannot be told apart.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.json")
        ...     _ = path.write_text('[\n {"x": 1},\n {"x": 2}\n]')
        ...     list(read_json(str(path)))
        [(2, {'x': 1}), (3, {'x': 2})]
    """
    with opened(file, encoding) as text:
        lines = enumerate(text, 1)
        number, first = next(((n, line) for n, line in lines if not _blank(line)), (0, ""))
        if _spans_lines(first):
            yield from _read_document(file, number, first + text.read())
            return
        second = next(((n, line) for n, line in lines if not _blank(line)), None)
        if second is None and _start(first) == "[":
            yield from _read_document(file, number, first)
            return
        begun = [(number, first), *([second] if second else [])]
        for at, line in chain(begun, lines):
            for row in _parsed(line):
                yield at, row


def _blank(line: str) -> bool:
    return _after_blanks(line, 0) == len(line)


def _after_blanks(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    assert found is not None
    return found.end()


def _start(text: str) -> str:
    return text[_after_blanks(text, 0) :][:1]


def _spans_lines(first: str) -> bool:
    """Tell whether a file's first line opens what a later one closes."""
    bare = first.strip("\ufeff \t\r\n")
    if bare in ("{", "["):
        return True
    if bare[:1] != "[" or bare[1:].lstrip()[:1] != "{":
        return False
    try:
        json.loads(bare)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def _parsed(line: str) -> list[dict[str, Any] | RowError]:
    """Return the objects of a line, or what is wrong with it."""
    found, position = [], _after_blanks(line, 0)
    try:
        checked(line, "it")
        while position < len(line):
            value, end = _DECODER.raw_decode(line, position)
            found.append(value)
            position = _after_blanks(line, end)
    except RowError as error:
        return [error]
    except (ValueError, RecursionError):
        return [RowError(_NO_OBJECT)]
    good = all(isinstance(value, dict | RowError) for value in found)
    return found if good else [RowError(_NO_OBJECT)]


def _row(value: Any, text: str) -> dict[str, Any] | RowError:
    try:
        checked(text, "it")
    except RowError as error:
        return error
    return value if isinstance(value, dict | RowError) else RowError(_NO_OBJECT)


def _read_document(file: str, line: int, text: str) -> Iterator[Row]:
    """Read values one after the other, and of arrays their entries, from text that begins there."""
    position, counted, depth = _after_blanks(text, 0), 0, 0
    try:
        while position < len(text):
            if text[position] == "[" and not depth:
                depth, position = 1, _after_blanks(text, position + 1)
            if depth and text[position : position + 1] == "]":
                depth, position = 0, _after_blanks(text, position + 1)
                continue
            start = position
            value, position = _DECODER.raw_decode(text, start)
            line, counted = line + text.count("\n", counted, position), position
            yield line, _row(value, text[start:position])
            position = _after_blanks(text, position)
            if depth and text[position : position + 1] == ",":
                position = _after_blanks(text, position + 1)
            elif depth and text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        if depth:
            raise json.JSONDecodeError("The array is never closed", text, position)
    except (ValueError, RecursionError) as error:
        broken = getattr(error, "pos", position)
        line += text.count("\n", counted, broken)
        raise MisconfigurationException(
            f"{file} is broken JSON on line {line} ({getattr(error, 'msg', error)}), behind which "
            "no row can be told from the next: mend it, or write an object a line"
        ) from error
