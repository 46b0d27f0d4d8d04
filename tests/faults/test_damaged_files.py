from torch import nn

from recall_lightning.weights.snapshot_file import FileSnapshot
from tests.faults.damaging import damaged, is_refused


def test_no_damage_to_a_snapshot_file_goes_unnoticed(tmp_path):
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    reference = FileSnapshot.write(net, tmp_path, "task_0").reference
    content = (tmp_path / reference.name).read_bytes()
    for seed in range(1000):
        kind, bad = damaged(content, seed)
        assert is_refused(reference, tmp_path, bad), f"seed {seed}: {kind}"
    assert not is_refused(reference, tmp_path, content)
