"""What stands in a cell of a row, as text."""

from __future__ import annotations

import math
import numbers
import reprlib
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from recall_lightning.data.row_errors import RowError


def is_empty(value: Any) -> bool:
    """Tell whether a cell holds nothing: no value, NaN, blanks, or an empty list.

    NaN is what a missing value becomes where a table was kept as floats; it is never a text.

    >>> [is_empty(value) for value in (None, float("nan"), " ", [], "nan", 0, False)]
    [True, True, True, True, False, False, False]
    """
    if value is None or (isinstance(value, str | bytes | list | tuple | dict) and not value):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str | bytes) and not value.strip()


def text_of(value: Any, name: str) -> str:
    """Return a cell's text; numbers and dates as Python writes them, bytes read as UTF-8.

    Args:
        value: What the cell holds.
        name: What an error calls the cell.

    Raises:
        RowError: If it is empty, or holds no text that a tokenizer takes: half a character (a lone
            surrogate), bytes that are no UTF-8, a NUL, a number that is infinite, or a list or
            mapping, whose entries a template names.

    Example:
        >>> text_of(3, "age"), text_of(b"Paris", "city")
        ('3', 'Paris')
        >>> text_of(float("nan"), "label")
        Traceback (most recent call last):
        recall_lightning.data.row_errors.RowError: label is empty
    """
    if isinstance(value, RowError):  # an entry that its reader could make nothing of
        raise value
    if is_empty(value):
        raise RowError(f"{name} is empty")
    if isinstance(value, str):
        return checked(value, name)
    if isinstance(value, bytes | bytearray):
        return checked(bytes(value).decode("utf-8", errors="surrogateescape"), name)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, numbers.Number | Decimal) and math.isfinite(value):  # type: ignore[arg-type]
        return str(value)
    if isinstance(value, date | time | timedelta | UUID):
        return str(value)
    kind = " (name its entry, as in {translation[en]})" if isinstance(value, dict | list) else ""
    raise RowError(f"{name} holds {reprlib.repr(value)}, and no text{kind}")


def checked(text: str, name: str) -> str:
    """Return a text that a tokenizer takes.

    Raises:
        RowError: If it holds half a character, what was read of bytes that are no UTF-8, or a NUL.
    """
    if "\0" in text:
        raise RowError(f"{name} holds a NUL character, as no text does")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        letter = ord(text[error.start])
        if 0xDC80 <= letter <= 0xDCFF:  # what undecodable bytes are read as
            raise RowError(
                f"{name} is no UTF-8 (it holds the byte 0x{letter - 0xDC00:02x}): if the file is "
                "in Latin-1 or another code, name it, as in encoding='latin-1'"
            ) from None
        raise RowError(
            f"{name} holds half a character, the lone surrogate \\u{letter:04x}"
        ) from None
    return text
