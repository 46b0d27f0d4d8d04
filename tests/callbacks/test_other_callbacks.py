import pytest
from conftest import Plain, loader, quiet_trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback


def test_averages_kept_apart_are_refused():
    trainer = quiet_trainer(RecallCallback(), StochasticWeightAveraging(1e-2))
    with pytest.raises(MisconfigurationException, match="Averaging puts an average of its"):
        trainer.fit(Plain(), loader(0))
