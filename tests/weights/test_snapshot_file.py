import errno
import os
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recall_lightning.weights.snapshot import Snapshot
from recall_lightning.weights.snapshot_file import FileSnapshot


class Tied(nn.Module):
    """Two parameters over one memory."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.transposed = nn.Parameter(self.weight.data.T)

    def forward(self, inputs):
        return inputs @ self.weight @ self.transposed


def write(module, folder):
    return FileSnapshot.write(module, folder, "task_0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_mapped_is_what_was_live(dtype, tmp_path):
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).to(dtype)
    net[0].weight.data = torch.randn(3, 5).to(dtype).T  # not contiguous
    expected, written = Snapshot.take(net), write(net, tmp_path)
    with torch.no_grad():
        net[0].weight.zero_()
    opened = FileSnapshot.open(written.reference, tmp_path)
    for snapshot in (written, opened):
        assert list(snapshot) != []
        assert set(snapshot) == set(expected)
        assert all(snapshot[name].equal(expected[name]) for name in expected)
    assert load_file(tmp_path / written.reference.name).keys() == expected.keys()
    assert written.reference.nbytes == (tmp_path / written.reference.name).stat().st_size


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), Tied], ids=["apart", "tied"])
def test_the_module_computes_with_it_and_the_live_weights_come_back(make, tmp_path):
    module, inputs = make(), torch.randn(4, 3 if make is Tied else 2)
    before = module(inputs)
    snapshot = write(module, tmp_path)
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    live, memory = module(inputs), [p.data_ptr() for p in module.parameters()]
    with suppress(KeyError), snapshot.applied_to(module):
        then = module(inputs)
        raise KeyError
    assert then.equal(before)
    assert module(inputs).equal(live)
    assert [p.data_ptr() for p in module.parameters()] == memory


def test_writing_to_a_mapped_weight_never_reaches_the_file(tmp_path):
    snapshot = write(nn.Linear(2, 2), tmp_path)
    snapshot["weight"].zero_()
    FileSnapshot.open(snapshot.reference, tmp_path)


def test_equal_weights_have_one_file(tmp_path):
    layer = nn.Linear(2, 2)
    assert write(layer, tmp_path).reference == write(layer, tmp_path).reference
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_truncated_and_altered_files_are_told_apart(tmp_path):
    reference = write(nn.Linear(2, 2), tmp_path).reference
    path = tmp_path / reference.name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        ValueError, match=rf"2 weights and {len(content)} .* has {len(content) - 1}"
    ):
        FileSnapshot.open(reference, tmp_path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="altered"):
        FileSnapshot.open(reference, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        FileSnapshot.open(reference, tmp_path)


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "replace"])
def test_a_failure_to_write_leaves_nothing(call, tmp_path, monkeypatch):
    plain = os.open

    def fail(*args, **kwargs):
        if call == "open" and not args[1] & os.O_CREAT:  # removing folders opens them
            return plain(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write(nn.Linear(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match="No space left"):
        write(nn.Linear(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".task_0.partial-abcdefgh").mkdir()
    (tmp_path / ".task_0.partial-abcdefgh" / "partial").write_bytes(b"half")
    write(nn.Linear(2, 2), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'weight' holds NaN"):
        write(layer, tmp_path)
    assert list(tmp_path.iterdir()) == []
