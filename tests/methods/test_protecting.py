import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.lwf import LearningWithoutForgetting
from tests.support.training import Plain, loader, quiet_trainer


@pytest.mark.parametrize("method", [L2ToSnapshot, LearningWithoutForgetting, HalfFineTuning])
@pytest.mark.parametrize("before", [False, True])
def test_the_first_task_goes_on_protected_or_not_as_it_began(method, before, tmp_path):
    def resume(protects, checkpoint=None):
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        trainer = quiet_trainer(
            method(from_first_task=protects), saver, max_epochs=2, enable_checkpointing=True
        )
        trainer.fit(Plain(), loader(0), ckpt_path=checkpoint)

    resume(before)
    resume(before, tmp_path / "step=4.ckpt")
    with pytest.raises(MisconfigurationException, match=f"={not before}, .* began with {before}"):
        resume(not before, tmp_path / "step=4.ckpt")
