import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from tests.support.baseline_tools import weights_of
from tests.support.training import Plain, loader, quiet_trainer


def test_it_averages_every_so_often_and_at_the_end_with_one_strength():
    callback = SequentialFinetuningAveraging(every=0.5, strength=0.2)
    quiet_trainer(callback).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == [4, 8]
    assert {c for r in callback.history for c in r["coefficient"].values()} == {0.2}


def test_the_end_averages_all_weights_with_those_at_the_start():
    class Frozen(Plain):
        """Jumps away from its start in the first step, and stays there."""

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 7:
                with torch.no_grad():
                    for parameter in self.parameters():
                        parameter += 1.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    model = Frozen()
    start = weights_of(model)
    quiet_trainer(SequentialFinetuningAveraging(every=0.5, strength=0.25)).fit(model, loader(0))
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, start[name] + 0.75)


def test_the_first_task_can_be_left_alone():
    callback = SequentialFinetuningAveraging(every=4, merge_first_task=False, task_epochs=1)
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == [12, 16]


@pytest.mark.parametrize("strength", [-0.1, 1.0, 1.5, float("nan")])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(MisconfigurationException, match="strength: weight="):
        SequentialFinetuningAveraging(strength=strength)
