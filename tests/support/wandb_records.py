"""What an offline run of Weights & Biases has recorded, read back from its file."""

import json
import struct
from pathlib import Path

_BLOCK, _HEADER = 32768, 7


def records(folder):
    """Yield the records of the one run below a folder: the format is that of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = Path(folder).rglob("run-*.wandb")
    content, position, parts = file.read_bytes(), _HEADER, []
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:  # padding
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts.append(content[position + _HEADER : position + _HEADER + length])
        position += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def config_of(folder):
    """Return the run's config."""
    config = {}
    for record in records(folder):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
    return config


def history_of(folder):
    """Return the points that were logged, each a dict by key."""
    points = [record.history.item for record in records(folder) if record.HasField("history")]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
        for items in points
    ]


def files_of(folder):
    """Return the names of the files that the run keeps."""
    return {file.path for r in records(folder) for file in r.files.files}
