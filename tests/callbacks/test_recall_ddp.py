import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from conftest import Plain, loader, quiet_trainer
from recall_lightning import ForgettingMonitor, RecallCallback

torch.set_num_threads(1)
torch.manual_seed(0)
callback, monitor = RecallCallback(typical_samples=8, pool_size=16), ForgettingMonitor("val/acc")
trainer = quiet_trainer(callback, monitor, strategy="ddp", devices=2)
model = Plain()
trainer.fit(model, loader(0), loader(0, 16, shuffle=False))
content = {{
    "coefficients": [record["coefficient"] for record in callback.history],
    "typical": callback._probe._typical[0][0].sum().item(),
    "weights": [p.double().sum().item() for p in model.parameters()],
    "matrix": monitor.matrix,
}}
open({out!r} + str(trainer.global_rank), "w").write(json.dumps(content))
"""


def test_two_processes_agree_on_coefficients_and_weights_bit_for_bit(tmp_path):
    script, out = tmp_path / "train.py", str(tmp_path / "rank_")
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), out=out))
    subprocess.run([sys.executable, script], check=True, capture_output=True, timeout=120)
    first, second = (json.loads(Path(f"{out}{rank}").read_text()) for rank in range(2))
    assert first["typical"] != second["typical"]  # each measures on its own part of the data
    assert len(first["coefficients"]) == 4
    for agreed in ("coefficients", "weights", "matrix"):
        assert first[agreed] == second[agreed]
