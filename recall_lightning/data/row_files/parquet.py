"""Rows in Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.row_errors import Row, RowError
from recall_lightning.data.row_files.opening import is_compressed


def read_parquet(file: str) -> Iterator[Row]:
    """Read rows; maps become mappings, binary cells stay bytes.

    Raises:
        MisconfigurationException: If it is no Parquet, or names a column twice.
    """
    import pyarrow
    import pyarrow.parquet

    if is_compressed(file):
        raise MisconfigurationException(
            f"{file} is compressed, as Parquet is inside already: unpack it"
        )
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise MisconfigurationException(
                    f"{file} names the column {', '.join(map(repr, twice))} more than once: "
                    "rename one"
                )
            for batch in parquet.iter_batches():
                for row in _rows(batch):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise MisconfigurationException(
            f"{file} cannot be read as Parquet (behind row {number}, {error}): write or download "
            "it again"
        ) from error


def _rows(batch: Any) -> Iterator[dict[str, Any] | RowError]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError):  # a date before the year 1, a map's key twice, …
        for row in range(batch.num_rows):
            try:
                yield from batch.slice(row, 1).to_pylist(maps_as_pydicts="strict")
            except (ValueError, KeyError, OverflowError) as error:
                yield RowError(f"it cannot be read ({error})")
