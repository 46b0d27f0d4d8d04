from lightning.pytorch.loggers import CSVLogger

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.records import FRONT_COLUMNS, front_figure, front_rows
from tests.support.callbacks import recall
from tests.support.training import Plain, loader, quiet_trainer


def test_history_is_plain_and_complete():
    callback = recall()
    quiet_trainer(callback).fit(Plain(), loader(0))
    record = callback.history[0]
    assert set(record) == {
        "task", "visit", "step", "similarity", "coefficient", "drift", "probe_seconds",
        "merge_seconds",
    }  # fmt: skip
    names = [block.name for block in callback.blocks]
    for measured in ("similarity", "coefficient", "drift"):
        assert list(record[measured]) == names
        assert all(type(value) is float for value in record[measured].values())
    assert record["drift"]["net.0"] > 0


def test_uniform_merging_needs_no_probe():
    callback = RecallCallback(rule=Uniform(0.4))
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert set(callback.history[0]["coefficient"].values()) == {0.4}
    assert callback.history[0]["similarity"] == {}


def test_what_is_merged_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    quiet_trainer(recall(), logger=logger).fit(Plain(), loader(0))
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split("\n")[0]
    for key in ("similarity/net.0", "coefficient/net.2", "drift/net.4", "probe_seconds"):
        assert f"recall/{key}" in header


def test_the_rows_of_a_front_are_the_merges_tried_and_then_the_one_made():
    callback = RecallCallback()
    quiet_trainer(callback).fit(Plain(), loader(0))
    (record,) = callback.history
    *tried, made = front_rows(record)
    assert [dict(zip(FRONT_COLUMNS, row, strict=True)) for row in tried] == [
        point | {"merged": False} for point in record["front"]
    ]
    loss, far = record["loss"]["merged"], record["divergence"]["merged"]
    assert made == [record["keep"], record["plasticity"], loss, far, True]
    assert "merges after a" in front_figure(record, "a").axes[0].get_title()
