import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.recall.settings import (
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
    SnapshotSettings,
)


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (SampleSettings, {"typical": 1}, "samples.typical=1 must be 2 or more"),
        (SampleSettings, {"typical": 8.5}, "samples.typical=8.5 must be 2 or more"),
        (SampleSettings, {"typical": True}, "samples.typical=True"),
        (SampleSettings, {"pool": 31}, "samples.pool=31 must be at least samples.typical=32"),
        (SampleSettings, {"pool": 64.0}, "samples.pool=64.0 must be"),
        (SampleSettings, {"sampling": "first"}, "samples.sampling='first' is unknown: use 'k-me"),
        (ImportanceSettings, {"source": "adam"}, "importance.source='adam' is unknown: use 'auto'"),
        (ImportanceSettings, {"steps": 0}, "importance.steps=0 must be an integer of 1 or more"),
        (ImportanceSettings, {"steps": 2.5}, "importance.steps=2.5 must be"),
        (MomentSettings, {"batches": 0}, "moments.batches=0 must be"),
        (MomentSettings, {"width": -1}, "moments.width=-1 must be"),
        (MomentSettings, {"rank": 2.5}, "moments.rank=2.5 must be"),
        (MomentSettings, {"source": "model"}, "moments.source='model' is unknown: use 'task' or"),
        (PriorSettings, {"sequences": 0}, "prior.sequences=0 must be"),
        (PriorSettings, {"tokens": 1}, "prior.tokens=1 must be 2 or more"),
        (PriorSettings, {"starts": "bos"}, "prior.starts='bos' must be a list"),
        (PriorSettings, {"starts": ("bos", "words")}, "prior.starts='words' is unknown: use 'bos'"),
        (SnapshotSettings, {"number": 0}, "snapshots.number=0 must be 'all' or how many"),
        (SnapshotSettings, {"number": "every"}, "snapshots.number='every' must be 'all'"),
        (SnapshotSettings, {"device": "gpu"}, "snapshots.device='gpu' must be a device"),
        (
            SnapshotSettings,
            {"to": "disk"},
            "snapshots.to='disk' is unknown: use 'checkpoint' or",
        ),
        (SnapshotSettings, {"on_missing": "skip"}, "snapshots.on_missing='skip' is unknown"),
        (SnapshotSettings, {"on_failed_write": "skip"}, "snapshots.on_failed_write='skip' is unkn"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_settings_out_of_their_range_are_refused_where_they_are_made(settings, values, message):
    with pytest.raises(MisconfigurationException, match=message):
        settings(**values)
