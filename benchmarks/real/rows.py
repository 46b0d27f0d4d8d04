"""Rows of tables in packages."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path


def rows_of(table: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a table by the names in its header.

    Args:
        table: Quoted as spreadsheets do it where cells are parted by commas, otherwise not at all.
        delimiter: What stands between cells.
    """
    csv.field_size_limit(sys.maxsize)
    with table.open(encoding="utf-8", newline="") as text:
        if delimiter == ",":
            yield from csv.DictReader(text)
        else:
            yield from csv.DictReader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def orange_rows(table: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a ``.tab`` file of Orange, whose header has two more lines."""
    rows = rows_of(table, "\t")
    next(rows), next(rows)  # types and roles; a third line, which is empty, is no row
    return rows
