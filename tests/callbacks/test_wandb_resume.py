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
            if os.environ["ENDS_BY"] == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("it broke")

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


@pytest.fixture(scope="module", params=["SIGKILL", "exception"])
def killed(request, tmp_path_factory):
    """The folder of a run that was killed, and gone on with.

    wandb writes in blocks: of a process that dies by a signal it has lost the last ones, and of one
    that dies by an exception none.
    """
    folder = tmp_path_factory.mktemp("killed")
    end = {"WANDB_SILENT": "true", "ENDS_BY": request.param}
    ended = run_python("-c", FIT, KILLED_AT, folder=folder, fails=True, **end)
    assert ended.code == (-signal.SIGKILL if request.param == "SIGKILL" else 1), ended.err
    resumed = run_python("-c", FIT, -1, CHECKPOINT, folder=folder, **end)
    if request.param == "exception":
        assert "is not logged again" in resumed.err
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


def test_no_row_of_a_table_and_no_picture_is_there_twice(killed):
    counts = Counter(name for name, _ in logged(killed))
    for kind in ("recall/coefficients", "recall/front", "recall/front_table"):
        assert [counts[f"{kind}/{task}._type"] for task in "abc"] == [1, 1, 1]
    for name in ("continual/matrix", "continual/matrix_image", "continual/scores_by_task_table"):
        assert counts[f"{name}._type"] == 3
    for file in killed.rglob("media/table/continual/matrix*"):
        labels = [row[0] for row in json.loads(file.read_text())["data"]]
        assert len(labels) == len(set(labels))


def test_the_artifacts_of_a_task_are_the_same_file_whenever_they_are_logged(killed):
    artifacts = [r.artifact for file in record_files(killed) for r in records_in(file)]
    weights = {}
    for one in artifacts:
        if one.type == "model":
            visit = json.loads(one.metadata)["visit"]
            weights.setdefault(visit, set()).add(one.digest)
    assert {visit: len(digests) for visit, digests in weights.items()} == {0: 1, 1: 1, 2: 1}
