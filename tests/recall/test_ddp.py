import json
from pathlib import Path

import pytest

from tests.support.processes import run_python

SCRIPT = """
import json
import torch
from tests.support.training import Plain, loader, quiet_trainer
from recall_lightning import ForgettingMonitor, RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import MomentSettings, SampleSettings
from tests.support.callbacks import statistic

torch.set_num_threads(1)
torch.manual_seed(0)
similarity = {{"rule": "rbf", "samples": SampleSettings(typical=8, pool=16)}}
statistics = {{"rule": "importance", "end_rule": "subspace"}}
curvature = {{"rule": "kfac_importance", "end_rule": "kfac_subspace"}}
refitted = {{"plasticity": 0.9}}
recalibrated = {{"rule": Uniform(0.2), "buffers": "recalibrate"}}
low_rank = {{"rule": "subspace", "moments": MomentSettings(width=9, rank=3)}}
content = []
for arguments in (similarity, statistics, curvature, low_rank, refitted, recalibrated):
    callback, monitor = RecallCallback(every=0.25, **arguments), ForgettingMonitor("val/acc")
    layers = [torch.nn.Linear(8, 9), torch.nn.BatchNorm1d(9), torch.nn.Linear(9, 2)]
    model = Plain(torch.nn.Sequential(*layers) if arguments is recalibrated else None)
    for task in range(2):
        trainer = quiet_trainer(callback, monitor, strategy="ddp", devices=2)
        trainer.fit(model, loader(task), [loader(t, 16, shuffle=False) for t in range(2)])
    moments, samples = statistic(callback, "moments"), statistic(callback, "samples")
    moments = [*moments.known.inputs.values(), *moments.known.outputs.values()] if moments else []
    typical = samples._typical if samples else []
    content.append({{
        "coefficients": [record["coefficient"] for record in callback.history],
        "typical": typical[0][0].sum().item() if typical else trainer.global_rank,
        "weights": [p.double().sum().item() for p in model.state_dict().values()],
        "moments": [t.double().sum().item() for m in moments for t in m.state_dict().values()],
        "matrix": monitor.matrix,
    }})
open({out!r} + str(trainer.global_rank), "w").write(json.dumps(content))
"""


@pytest.mark.processes
def test_two_processes_agree_on_coefficients_and_weights_bit_for_bit(tmp_path):
    script, out = tmp_path / "train.py", str(tmp_path / "rank_")
    script.write_text(SCRIPT.format(out=out))
    run_python(script, folder=tmp_path)
    ranks = (json.loads(Path(f"{out}{rank}").read_text()) for rank in range(2))
    for first, second in zip(*ranks, strict=True):
        assert first["typical"] != second["typical"]  # each measures on its own part of the data
        assert len(first["coefficients"]) == 8
        for agreed in ("coefficients", "weights", "moments", "matrix"):
            assert first[agreed] == second[agreed]
