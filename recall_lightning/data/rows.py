"""Rows of data sets, from files or through the library ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.row_errors import Row, RowError
from recall_lightning.data.row_files.json_rows import read_json
from recall_lightning.data.row_files.opening import ending_of
from recall_lightning.data.row_files.parquet import read_parquet
from recall_lightning.data.row_files.separated import read_separated

__all__ = ["RowError", "has_header", "is_file", "read_rows", "unit_of"]

_JSON = (".jsonl", ".ndjson", ".json")
_FILES = (*_JSON, ".csv", ".tsv", ".parquet")


def is_file(name: str) -> bool:
    """Tell whether a name is meant as that of a file of rows.

    >>> is_file("data/train.jsonl"), is_file("TRAIN.CSV.gz"), is_file("train")
    (True, True, False)
    """
    return ending_of(name) in _FILES


def unit_of(name: str) -> str:
    """Return what the numbers of :func:`read_rows` count."""
    return "line" if is_file(name) and ending_of(name) != ".parquet" else "row"


def has_header(name: str) -> bool:
    """Tell whether all rows of :func:`read_rows` have the same columns; objects in JSON need not.

    >>> has_header("a.csv"), has_header("a.jsonl")
    (True, False)
    """
    return ending_of(name) not in _JSON


def read_rows(
    split: str,
    data: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
    encoding: str | None = None,
    delimiter: str | None = None,
) -> Iterator[Row]:
    r"""Read the rows of a file, or of a data set's split.

    Args:
        split: A file of JSON lines or a JSON array (.jsonl, .ndjson, .json), comma- or
            tab-separated values (.csv, .tsv) or Parquet, text compressed or not (.gz, .bz2, .xz,
            .zst); or the name of a split of ``data``.
        data: Hub id of a data set, or a folder with one (files that the hub would take, or what
            ``save_to_disk`` wrote).
        config: The data set's configuration.
        revision: A branch, tag or commit of the hub's, such as ``"refs/convert/parquet"``.
        data_dir: A folder of the data set to look for files in.
        streaming: Whether to read it from the hub as it is used.
        encoding: What a file of text is written in, by default UTF-8.
        delimiter: What stands between cells, by default a comma in .csv and a tab in .tsv.

    Raises:
        MisconfigurationException: If there is no such file, data set or split, or the whole of a
            file cannot be read; what is wrong with one row comes in its place.

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
    if ending_of(split) == ".parquet":
        return read_parquet(split)
    if ending_of(split) in _JSON:
        return read_json(split, encoding)
    return read_separated(split, encoding, delimiter)


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
            f"{split!r} is no file of {', '.join(_FILES)} (or those of text with .gz, .bz2, .xz or "
            ".zst behind), and there is no data set whose split it could be: give its hub id or "
            "folder as data"
        )
    try:
        if Path(data, "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(data)[split]
        elif Path(data, "state.json").is_file():
            rows = datasets.load_from_disk(data)
            if rows.split is None or str(rows.split) != split:
                raise ValueError(
                    f"the folder holds a single split, {rows.split}, and no other: save a "
                    "DatasetDict that names them"
                )
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
