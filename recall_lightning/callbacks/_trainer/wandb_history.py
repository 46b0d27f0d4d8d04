"""What a run of Weights & Biases was logged before it was gone on with by its id."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch.loggers import WandbLogger

_BLOCK, _HEADER = 32768, 7  # bytes
_WHOLE, _LAST = 1, 4  # kinds of parts
_KNOWN: WeakKeyDictionary[WandbLogger, dict[tuple[str, str], float]] = WeakKeyDictionary()


def furthest(logger: WandbLogger, key: str, axis: str) -> float | None:
    """Return the furthest place on an axis where earlier processes logged a key of this run.

    That is what the service tells of a run that goes on, and offline what lies in the files of
    those processes. One that was killed may have logged more that reached neither.

    Args:
        logger: Of the run.
        key: A metric or medium.
        axis: The metric that it is drawn over.
    """
    if logger not in _KNOWN:
        _KNOWN[logger] = _logged_before(logger.experiment)
    return _KNOWN[logger].get((key, axis))


def _logged_before(run: Any) -> dict[tuple[str, str], float]:
    own = Path(run.dir).parent  # …/wandb/offline-run-20260101_120000-ID/files
    files = [file for file in own.parent.glob(f"*run-*-{run.id}/run-{run.id}.wandb")
             if file.parent != own]  # fmt: skip
    rows: Iterable[dict[str, Any]]
    if run.offline:
        rows = (row for file in files for row in rows_in(file))
    else:  # what the service did not get will not come
        rows = [dict(run.summary)] if run.resumed else []
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        numbers = {n: v for n, v in row.items() if isinstance(v, int | float)}
        for axis in numbers.keys() & {"continual/task", "recall/step"}:
            for key in row:
                place = float(numbers[axis])
                found[key, axis] = max(place, found.get((key, axis), place))
    return found


def rows_in(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged at once, by key; of media there is no more than that they are there.

    Args:
        file: Written by wandb.
    """
    for record in records_in(file):
        if record.HasField("history"):
            items = record.history.item
            yield {
                item.key or item.nested_key[0]: (
                    json.loads(item.value_json) if len(item.nested_key) < 2 else None
                )
                for item in items
            }


def records_in(file: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file, up to where one is cut off.

    The format is that of LevelDB's logs: blocks of 32 KiB with parts of records, each behind a
    checksum, a length and the part's kind.

    Args:
        file: Written by wandb, which has no reader of it.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), _HEADER, []
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:  # padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        start, position = position + _HEADER, position + _HEADER + length
        if position > len(content):
            return
        parts.append(content[start:position])
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
