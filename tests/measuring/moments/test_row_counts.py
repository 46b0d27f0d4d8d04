import torch

from recall_lightning.measuring.moments import RowCounts


def test_rows_are_counted():
    counts = RowCounts.empty(5)
    counts.update(torch.tensor([4, 0, 4]))
    counts.update(torch.tensor([1]))
    assert counts.counts.tolist() == [1, 1, 0, 0, 2]
    assert counts.mean().plus(counts.mean()).counts.tolist() == [0.5, 0.5, 0, 0, 1]
