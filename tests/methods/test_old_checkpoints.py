"""Checkpoints of an earlier version lead where they led."""

import shutil
from pathlib import Path

import pytest
import torch

from recall_lightning import ForgettingMonitor, methods
from recall_lightning.recall.migration import OLD_CALLBACKS
from tests.fixtures import make

FIXTURES = Path(make.__file__).parent


@pytest.mark.parametrize("kind", make.BASELINES)
def test_a_checkpoint_of_an_earlier_version_leads_where_it_led(kind, tmp_path):
    shutil.copytree(FIXTURES / "checkpoints" / kind, tmp_path, dirs_exist_ok=True)
    path, arguments = make.BASELINES[kind]
    name = path.rpartition(".")[2]
    callback = getattr(methods, OLD_CALLBACKS.get(name, name))(**arguments)
    monitor = ForgettingMonitor("val/acc")
    model = make.fit(kind, [callback, monitor], tmp_path, tmp_path / "checkpoint.ckpt")
    then = torch.load(tmp_path / "end.pt")
    for weight, old in zip(model.state_dict().values(), then["weights"].values(), strict=True):
        torch.testing.assert_close(weight, old, rtol=1e-3, atol=1e-5)
    assert monitor.matrix == then["matrix"]
    assert len(getattr(callback, "history", [])) == len(then["history"])
