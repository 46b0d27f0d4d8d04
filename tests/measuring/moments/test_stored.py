import pytest
import torch

from recall_lightning.measuring.moments import FullMoments, RowCounts, moments_from
from tests.support.moments import of_low_rank, rows


@pytest.mark.parametrize("kind", ["full", "low rank", "rows"])
def test_what_a_checkpoint_holds_comes_back(kind, tmp_path):
    moments = {
        "full": FullMoments(torch.eye(3), torch.tensor(2.0)),
        "low rank": of_low_rank(rows(0), 2),
        "rows": RowCounts(torch.arange(3.0), torch.tensor(3.0)),
    }[kind]
    torch.save(moments.state_dict(), tmp_path / "state")
    back = moments_from(torch.load(tmp_path / "state", weights_only=True))
    assert type(back) is type(moments)
    assert back.width == moments.width
    for name, tensor in moments.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
