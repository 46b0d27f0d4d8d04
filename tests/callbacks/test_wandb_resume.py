"""A run of Weights & Biases that was killed and is gone on with by its id."""

import json
import signal
from collections import Counter

import pytest

from tests.support.processes import run_python
from tests.support.wandb_records import points_of, record_files, records_in

pytestmark = pytest.mark.processes

FIT = """
import os, signal, sys
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from recall_lightning import ForgettingMonitor, RecallCallback
from tests.callbacks.test_limits import stream
from tests.support.training import Plain, quiet_trainer

class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
trainer = quiet_trainer(
    RecallCallback(every=0.25, plasticity=0.9, log_artifacts="weights"),
    ForgettingMonitor("val/acc"),
    Kill(),
    ModelCheckpoint("checkpoints", every_n_train_steps=10, save_top_k=-1),
    logger=WandbLogger(project="p", id="one", save_dir=".", offline=True, resume="allow"),
    max_epochs=3, reload_dataloaders_every_n_epochs=1, enable_checkpointing=True,
    log_every_n_steps=1,
)
model = Plain()
if len(sys.argv) == 2:
    trainer.validate(model, stream(), verbose=False)
trainer.fit(model, stream(), ckpt_path=(sys.argv[2:] or [None])[0])
trainer.logger.experiment.finish()
"""
# eight steps a task: what is logged at steps 12 to 18, and after the second task, is logged before
# the kill and belongs to what is trained once more
KILLED_AT, CHECKPOINT = 19, "checkpoints/epoch=1-step=10.ckpt"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed, and gone on with."""
    folder = tmp_path_factory.mktemp("killed")
    ended = run_python("-c", FIT, KILLED_AT, folder=folder, fails=True, WANDB_SILENT="true")
    assert ended.code == -signal.SIGKILL, ended.err
    resumed = run_python("-c", FIT, -1, CHECKPOINT, folder=folder, WANDB_SILENT="true")
    assert resumed.err.count("is not logged again") == 1, resumed.err
    return folder


AXES = {"continual": "continual/task", "recall": "recall/step"}


def logged(folder):
    """What both processes have logged over axes of ours: names, each with a place."""
    found = []
    for file in record_files(folder):
        for point in points_of(records_in(file)):
            axes = {name: AXES.get(name.partition("/")[0]) for name in point}
            # media come with their axis, too
            own = {name: axis for name, axis in axes.items() if axis in point and name != axis}
            found += [(name, point[axis]) for name, axis in own.items()]
    return found


def test_no_point_is_logged_twice_and_none_is_missing(killed):
    assert len(record_files(killed)) == 2
    counts = Counter(logged(killed))
    assert [one for one, times in counts.items() if times > 1] == []
    steps = [at for name, at in counts if name == "recall/merge_seconds"]
    assert sorted(steps) == [*range(2, 25, 2)]
    assert sorted(at for name, at in counts if name == "continual/average") == [1, 2, 3]


def test_no_artifact_is_logged_twice(killed):
    artifacts = [r.artifact for file in record_files(killed) for r in records_in(file)]
    visits = [json.loads(one.metadata)["visit"] for one in artifacts if one.type == "model"]
    assert visits == [0, 1, 2]


def test_no_row_of_a_table_and_no_picture_is_there_twice(killed):
    named = [
        file.name.rsplit("_", 2)[0]
        for kind in ("recall/coefficients", "recall/front", "recall/front_table")
        for file in killed.rglob(f"media/*/{kind}/*")
    ]
    assert sorted(named) == sorted(["a", "b", "c"] * 3)
    tables = [
        json.loads(file.read_text()) for file in killed.rglob("media/table/continual/matrix*")
    ]
    assert sorted(len(table["data"]) for table in tables) == [2, 3, 4]
    for table in tables:
        labels = [row[0] for row in table["data"]]
        assert len(labels) == len(set(labels))
