"""Text files as people have them: compressed, with a byte order mark, in a code of their own."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.utilities.exceptions import MisconfigurationException


def _open_zstandard(file: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MisconfigurationException(
            f"{file} is compressed with Zstandard, which pyarrow reads: pip install pyarrow"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.OSFile(file), "zstd")


_DECOMPRESS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
_COMPRESSED = {
    rb"\x1f\x8b": "gzip, and its name does not end in .gz",
    rb"BZh[1-9]1AY&SY": "bzip2, and its name does not end in .bz2",
    rb"\xfd7zXZ\x00": "xz, and its name does not end in .xz",
    rb"\x28\xb5\x2f\xfd": "Zstandard, and its name does not end in .zst",
    rb"PK\x03\x04": "zip, as a workbook of Excel is: unpack or export it",
}
_MARKS = {  # the longer ones begin with the shorter
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def ending_of(name: str) -> str:
    """Return what tells a file's format: its ending in lower case, without that of compression.

    >>> ending_of("a/TRAIN.JSONL"), ending_of("train.csv.gz"), ending_of("train")
    ('.jsonl', '.csv', '')
    """
    path = Path(name)
    if path.suffix.lower() in _DECOMPRESS:
        path = path.with_suffix("")
    return path.suffix.lower()


def is_compressed(name: str) -> bool:
    """Tell whether a file's name says that it is compressed."""
    return Path(name).suffix.lower() in _DECOMPRESS


@contextmanager
def opened(file: str, encoding: str | None = None, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file, decompressed as its name says.

    Bytes that the encoding does not know become lone surrogates, so that one line of them spoils
    nothing but itself; :func:`~recall_lightning.data.cells.text_of` finds them.

    Args:
        file: Its path; ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` are decompressed.
        encoding: What it is written in, by default UTF-8. A byte order mark is no part of its text.
        newline: As of :func:`open`.

    Raises:
        MisconfigurationException: If it cannot be read, is written in UTF-16 or UTF-32 which was
            not named, or compressed in spite of its name.
    """
    try:
        name = codecs.lookup(encoding or "utf-8").name
    except LookupError:
        raise MisconfigurationException(
            f"encoding={encoding!r} of {file} is unknown: give one of Python's, such as 'utf-8', "
            "'utf-16' or 'latin-1'"
        ) from None
    try:
        decompress = _DECOMPRESS.get(Path(file).suffix.lower())
        with decompress(file) if decompress is not None else open(file, "rb") as content:
            buffered = io.BufferedReader(content)
            first = buffered.peek(512)[:512]
            _check(file, first, encoding)
            name = "utf-8-sig" if name == "utf-8" else name
            yield io.TextIOWrapper(buffered, name, "surrogateescape", newline)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise MisconfigurationException(
            f"{file} cannot be read ({type(error).__name__}: {error}): check its permissions, or "
            "download it again"
        ) from error


def _check(file: str, first: bytes, encoding: str | None) -> None:
    """Refuse what its first bytes show to be no text in the encoding."""
    for mark, how in _COMPRESSED.items():
        if re.match(mark, first):
            raise MisconfigurationException(f"{file} is compressed with {how}: unpack it")
    if first.startswith(b"version https://git-lfs.github.com/spec/"):
        raise MisconfigurationException(
            f"{file} is a pointer of Git LFS, and not the file itself: get it with git lfs pull"
        )
    found = next((name for mark, name in _MARKS.items() if first.startswith(mark)), None)
    if found is None and len(first) >= 8:
        nul = [first[parity::2].count(0) / len(first[parity::2] or b".") for parity in (0, 1)]
        if max(nul) > 0.4 and min(nul) < 0.1:  # letters of ASCII in two bytes each
            found = "utf-16-be" if nul[0] > nul[1] else "utf-16-le"
    if found is not None and encoding is None:
        raise MisconfigurationException(
            f"{file} is written in {found.upper()}, and not in UTF-8: name it, as in "
            f"encoding={found!r}"
        )
