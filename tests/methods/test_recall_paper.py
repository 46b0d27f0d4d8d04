import math

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods import RecallPaper
from tests.support.training import Plain, loader, quiet_trainer

SMALL = {"typical_samples": 8, "pool_size": 32}


@pytest.mark.parametrize(
    ("callback", "steps"),
    [
        (RecallPaper(task_epochs=1, **SMALL), [8, 16]),
        (RecallPaper(every=0.5, task_epochs=1, **SMALL), [4, 8, 12, 16]),
        (RecallPaper(every=0.5, task_epochs=1, merge_first_task=False, **SMALL), [12, 16]),
    ],
)
def test_when_it_merges(callback, steps):
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    assert [record["step"] for record in callback.history] == steps


@pytest.mark.parametrize("every", [1.0, 0.25])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_every_merge_has_the_papers_coefficients(every, temperature):
    callback = RecallPaper(every, temperature=temperature, **SMALL)
    quiet_trainer(callback, max_epochs=2).fit(Plain(), loader(0))
    for record in callback.history:
        for block, similarity in record["similarity"].items():
            of_two = 1 / (1 + math.exp((1 - similarity) / temperature))
            assert record["coefficient"][block] == pytest.approx(of_two)
    assert len(set(callback.history[-1]["coefficient"].values())) == 3


def test_a_state_saved_when_the_loop_was_a_class_of_its_own_is_taken_up(tmp_path):
    first = RecallPaper(every=0.5, task_epochs=1, **SMALL)
    trainer = quiet_trainer(first, max_epochs=1)
    trainer.fit(Plain(), loader(0))
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    checkpoint["callbacks"] = {"RecallPaperLoop": checkpoint["callbacks"]["RecallPaper"]}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    resumed = RecallPaper(every=0.5, task_epochs=1, **SMALL)
    trainer = quiet_trainer(resumed, max_epochs=2)
    trainer.fit(Plain(), loader(0), ckpt_path=tmp_path / "old.ckpt")
    assert [record["step"] for record in resumed.history] == [4, 8, 12, 16]


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"sigma": -1.0}, {"typical_samples": 1}])
def test_bad_arguments_are_refused(bad):
    (name,) = bad
    with pytest.raises(MisconfigurationException, match=name.removesuffix("_samples")):
        RecallPaper(**bad)
