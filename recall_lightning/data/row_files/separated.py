"""Comma- and tab-separated values."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.cells import checked, text_of
from recall_lightning.data.row_errors import Row, RowError
from recall_lightning.data.row_files.opening import ending_of, opened

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_Cells = Iterator[tuple[int, "list[str] | RowError"]]


def read_separated(
    file: str, encoding: str | None = None, delimiter: str | None = None
) -> Iterator[Row]:
    """Read rows of cells under a header.

    In ``.csv`` a cell may be quoted and then holds delimiters, line ends and doubled quotes (RFC
    4180). In ``.tsv`` there is no quoting: a quote is a letter like any other, and a tab or line
    end always ends a cell (the IANA's text/tab-separated-values).

    Args:
        file: Its path.
        encoding: What it is written in, by default UTF-8.
        delimiter: What stands between cells, by default a comma in ``.csv``, a tab in ``.tsv``.

    Raises:
        MisconfigurationException: If the header cannot be read, names a column twice, or seems to
            be separated by something else.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise MisconfigurationException(
            f"delimiter={delimiter!r} of {file} must be one character, such as ';'"
        )
    quoted = ending_of(file) == ".csv"
    between = delimiter or _DELIMITERS[ending_of(file)]
    with opened(file, encoding, newline="" if quoted else None) as text:
        rows = _quoted(text, between) if quoted else _plain(text, between)
        _, first = next(rows, (0, [""]))
        header = _header(file, first, between, given=delimiter is not None)
        for number, cells in rows:
            yield number, cells if isinstance(cells, RowError) else _row(header, cells)


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    try:
        checked("".join(cells), "it")
    except RowError as error:
        return error
    if len(cells) < len(header) or any(cells[len(header) :]):
        return RowError(f"it has {len(cells)} cells, and the header {len(header)}")
    return {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _header(file: str, cells: list[str] | RowError, between: str, given: bool) -> list[str]:
    """Return the columns' names."""
    if isinstance(cells, RowError):
        raise MisconfigurationException(f"the header of {file} cannot be read ({cells}): mend it")
    try:
        names = [text_of(cell, "it") if cell.strip() else "" for cell in cells]
    except RowError as error:
        raise MisconfigurationException(
            f"the header of {file} cannot be read ({error}): mend it"
        ) from None
    if len(names) == 1 and not given:
        others = [other for other in ",;\t|" if other != between and other in names[0]]
        if others:
            raise MisconfigurationException(
                f"the header of {file} is a single column, {names[0]!r}: where its cells are "
                f"separated by {others[0]!r}, and not by {between!r}, say delimiter={others[0]!r}"
            )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise MisconfigurationException(
            f"the header of {file} names the column {', '.join(map(repr, twice))} more than once: "
            "rename it"
        )
    return names


def _plain(lines: Iterator[str], between: str) -> _Cells:
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n")
        if line:
            yield number, line.split(between)


class _Lines:
    """Lines that can be put back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._back: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def put_back(self) -> None:
        """Put back all lines that were taken but the first."""
        again = self.taken[1:]
        self._back.extendleft(reversed(again))
        self.number -= len(again)


def _quoted(text: Iterator[str], between: str) -> _Cells:
    """Parse rows; behind one that is broken, a quote never closed say, go on with the next line."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=between, strict=True)
    while True:
        lines.taken.clear()
        limit = csv.field_size_limit(sys.maxsize)  # of the whole process, so only meanwhile
        try:
            cells = next(reader, None)
        except csv.Error as error:
            lines.put_back()
            yield lines.number, RowError(f"its quotes do not fit ({error})")
            continue
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield lines.number, cells
