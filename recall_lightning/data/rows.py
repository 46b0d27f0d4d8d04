"""Rows of data sets, from files or through the library ``datasets``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

BadRows = Literal["skip", "error"]


class RowError(ValueError):
    """A row that nothing can be made of."""


@dataclass
class RowFaults:
    """What was wrong with the rows of one split.

    Attributes:
        where: What an error calls the split.
        rows: How many were read.
        bad: How many of them nothing could be made of.
        first: Which the first of those was, and what was wrong with it.
    """

    where: str
    rows: int = 0
    bad: int = 0
    first: str = ""

    def add(self, which: str, error: RowError, bad_rows: BadRows) -> None:
        """Count a bad row.

        Raises:
            MisconfigurationException: If ``bad_rows`` is ``"error"``.
        """
        self.bad += 1
        self.first = self.first or f"{which}: {error}"
        if bad_rows == "error":
            self.refuse()

    def refuse(self) -> None:
        """Raise for the first of the bad rows."""
        raise MisconfigurationException(
            f"{self.where}, {self.first}. Mend it, or leave such rows out: bad_rows='skip'"
        )

    def say(self) -> None:
        """Warn of what was left out."""
        if self.bad:
            rank_zero_warn(
                f"{self.where}: {self.bad} of {self.rows} rows were left out; the first: "
                f"{self.first}"
            )


_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
Row = tuple[int, "dict[str, Any] | RowError"]
"""A row with its number, counted from 1: in text files the line on which it ends."""


def is_file(name: str) -> bool:
    """Tell whether a name is meant as that of a file of rows.

    >>> is_file("data/train.jsonl"), is_file("train")
    (True, False)
    """
    return Path(name).suffix in _FILES


def unit_of(name: str) -> str:
    """Return what the numbers of :func:`read_rows` count."""
    return "line" if is_file(name) and not name.endswith(".parquet") else "row"


def read_rows(
    split: str,
    data: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
) -> Iterator[Row]:
    r"""Read the rows of a file, or of a data set's split.

    Args:
        split: A file of JSON lines, comma- or tab-separated values or Parquet; or the name of a
            split of ``data``.
        data: Hub id of a data set, or a folder with one (files that the hub would take, or what
            ``save_to_disk`` wrote).
        config: The data set's configuration.
        revision: A branch, tag or commit of the hub's, such as ``"refs/convert/parquet"``.
        data_dir: A folder of the data set to look for files in.
        streaming: Whether to read it from the hub as it is used.

    Raises:
        MisconfigurationException: If there is no such file, data set or split.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.jsonl")
        ...     _ = file.write_text('{"x": 1}\nnot json\n')
        ...     [(line, row) for line, row in read_rows(str(file))]
        [(1, {'x': 1}), (2, RowError('it is no JSON object'))]
    """
    if not is_file(split):
        return _read_data_set(split, data, config, revision, data_dir, streaming)
    if not Path(split).is_file():
        raise MisconfigurationException(
            f"there is no file {split} (looked for in {Path.cwd()}): give its path from there, or "
            "an absolute one"
        )
    if Path(split).suffix == ".parquet":
        return _read_parquet(split)
    return _read_json(split) if Path(split).suffix in (".jsonl", ".json") else _read_csv(split)


def _read_json(file: str) -> Iterator[Row]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            good = isinstance(row, dict)
            yield number, row if good else RowError("it is no JSON object")


def _read_csv(file: str) -> Iterator[Row]:
    delimiter = "\t" if file.endswith(".tsv") else ","
    with open(file, encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        for row in reader:
            if None in row:
                yield reader.line_num, RowError("it has more fields than the header")
            else:
                yield reader.line_num, row


def _read_parquet(file: str) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _read_data_set(
    split: str,
    data: str | None,
    config: str | None,
    revision: str | None,
    data_dir: str | None,
    streaming: bool,
) -> Iterator[Row]:
    import datasets

    if data is None:
        raise MisconfigurationException(
            f"{split!r} is no file of {', '.join(_FILES)}, and there is no data set whose split it "
            "could be: give its hub id or folder as data"
        )
    try:
        if Path(data, "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(data)[split]
        else:
            rows = datasets.load_dataset(
                data,
                config,
                split=split,
                revision=revision,
                data_dir=data_dir,
                streaming=streaming,
            )
    except Exception as error:  # of a dozen kinds: no such id, split or network, a script, …
        raise MisconfigurationException(
            f"the split {split!r} of the data set {data!r} cannot be loaded "
            f"({type(error).__name__}: {error}). Where there is no network, point data to a folder "
            "that holds it, or train and validation to files"
        ) from error
    return ((number, dict(row)) for number, row in enumerate(rows, 1))
