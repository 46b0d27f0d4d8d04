"""The format language of templates: that of ``str.format``, with sections for optional columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any

from recall_lightning.data.cells import is_empty, text_of
from recall_lightning.data.row_errors import RowError

_FORMATTER = Formatter()


@dataclass(frozen=True)
class _Field:
    name: str
    conversion: str | None
    spec: str


@dataclass(frozen=True)
class _Section:
    name: str
    filled: bool  # whether it stands where the column holds something, or where it does not
    parts: tuple[str | _Field | _Section, ...]


_Parts = tuple[str | _Field | _Section, ...]


@lru_cache(maxsize=1024)
def parse(pattern: str) -> _Parts:
    """Parse a format, to see whether it is one.

    Raises:
        ValueError: If it is none: a brace or a section is not closed, or a field has no name.
    """
    opened: list[tuple[str, list[Any]]] = [("", [])]
    for literal, field, spec, conversion in _FORMATTER.parse(pattern):
        if literal:
            opened[-1][1].append(literal)
        if field is None:
            continue
        if field in ("#", "^"):
            raise ValueError(
                f"the section {{{field}}} names no column: write one as {{{field}column}}"
            )
        if field[:1] in ("#", "^"):
            opened.append((field, []))
        elif field[:1] == "/":
            begun, parts = opened.pop()
            if begun[1:] != field[1:] or not opened:
                raise ValueError(f"{{{field}}} must close the section that was opened last")
            opened[-1][1].append(_Section(field[1:], begun[0] == "#", tuple(parts)))
        elif not field:
            raise ValueError("{} must name a column, as {column}")
        else:
            parse(spec or "")
            opened[-1][1].append(_Field(field, conversion, spec or ""))
    if len(opened) > 1:
        raise ValueError(
            f"the section {{{opened[-1][0]}}} is never closed: end it with {{/{opened[-1][0][1:]}}}"
        )
    return tuple(opened[0][1])


def column_of(field: str) -> str:
    """Return the column of a field.

    >>> column_of("translation[en]"), column_of("label")
    ('translation', 'label')
    """
    return field.partition("[")[0].partition(".")[0]


def columns_of(pattern: str) -> tuple[set[str], set[str]]:
    """Return the columns that a row must have, and those that it may lack.

    >>> needed, optional = columns_of("{instruction}{#input}, given {input}{/input}")
    >>> sorted(needed), sorted(optional)
    (['instruction'], ['input'])
    """
    needed, optional = _columns(parse(pattern))
    return needed, optional - needed


def _columns(parts: _Parts) -> tuple[set[str], set[str]]:
    needed: set[str] = set()
    optional: set[str] = set()
    for part in parts:
        if isinstance(part, _Section):
            optional |= {column_of(part.name)}.union(*_columns(part.parts))
        elif isinstance(part, _Field):
            found = _columns(parse(part.spec))
            needed |= {column_of(part.name)} | found[0]
            optional |= found[1]
    return needed, optional


def fixed_text(pattern: str) -> str:
    """Return what a format writes of every row.

    >>> fixed_text("Q: {question}{#hint} ({hint}){/hint}?")
    'Q: ?'
    """
    return "".join(part for part in parse(pattern) if isinstance(part, str))


def fill(pattern: str, row: Mapping[str, Any]) -> str:
    """Fill a format with a row's cells.

    Args:
        pattern: The format. ``{question}`` is a column and ``{translation[en]}`` an entry of one
            that holds a mapping; ``{#input}…{/input}`` stands only where the column ``input`` holds
            something, ``{^input}…{/input}`` only where it does not (as in Mustache).
        row: The row.

    Raises:
        RowError: If a column that is not in such a section is missing, empty or no text.

    Example:
        >>> alpaca = "{instruction}{#input} Given: {input}{/input}"
        >>> fill(alpaca, {"instruction": "Sort.", "input": "b, a"})
        'Sort. Given: b, a'
        >>> fill(alpaca, {"instruction": "Say hello.", "input": ""})
        'Say hello.'
    """
    return "".join(_filled(part, row) for part in parse(pattern))


def _filled(part: str | _Field | _Section, row: Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, _Section):
        wanted = is_empty(look_up(part.name, row, default=None)) != part.filled
        return "".join(_filled(inner, row) for inner in part.parts) if wanted else ""
    value = look_up(part.name, row)
    text = text_of(value, part.name)
    if not part.spec and part.conversion is None:
        return text
    if isinstance(value, bytes):
        value = text
    try:
        converted = _FORMATTER.convert_field(value, part.conversion)
        return _FORMATTER.format_field(converted, fill(part.spec, row))
    except (ValueError, TypeError) as error:
        raise RowError(
            f"{part.name} holds {value!r}, which cannot be written so: {error}"
        ) from None


_NEEDED = object()


def look_up(field: str, row: Mapping[str, Any], default: Any = _NEEDED) -> Any:
    """Return what a field of a row holds: a column of that very name, or an entry of one.

    Raises:
        RowError: If it is missing, and there is no default.
    """
    if field in row:
        return row[field]
    try:
        return _FORMATTER.get_field(field, (), row)[0]
    except (LookupError, TypeError, AttributeError, ValueError):
        if default is _NEEDED:
            raise RowError(f"{field} is missing") from None
        return default
