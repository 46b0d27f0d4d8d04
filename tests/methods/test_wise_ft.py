import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.wise_ft import WiseFT
from tests.support.training import Plain, loader, quiet_trainer


def test_it_averages_once_at_each_tasks_end():
    callback = WiseFT(strength=0.3, task_epochs=2)
    quiet_trainer(callback, max_epochs=4).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == [16, 32]
    assert {c for r in callback.history for c in r["coefficient"].values()} == {0.3}


def test_the_first_task_can_be_left_alone():
    callback = WiseFT(merge_first_task=False, task_epochs=1)
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    assert [record["task"] for record in callback.history] == [1]


@pytest.mark.parametrize("strength", [-0.1, 1.0])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(MisconfigurationException, match="strength: weight="):
        WiseFT(strength=strength)
