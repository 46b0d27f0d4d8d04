from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning import RecallCallback
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.methods.l2 import L2ToSnapshot
from tests.support.training import Plain, loader, quiet_trainer


def trainer_with(kind, tensor_parallel=1):
    """A Trainer as far as it is looked at; most strategies can't be made without their library."""
    strategy = object.__new__(kind)
    if kind is ModelParallelStrategy:
        size = SimpleNamespace(size=lambda: tensor_parallel)
        strategy._device_mesh = {"tensor_parallel": size}
    return SimpleNamespace(strategy=strategy)


class Mine(SingleDeviceStrategy):
    """A strategy of the user's own."""


@pytest.mark.parametrize("kind", [SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy])
def test_what_was_tried_is_let_through(kind):
    check_strategy(trainer_with(kind), None, sharded=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(DeepSpeedStrategy, "copies of the weights in float32"), (FSDPStrategy, "have no names")],
)
@pytest.mark.parametrize("allow_untested", [False, True])
def test_what_is_known_not_to_work_is_refused_with_its_reason(kind, reason, allow_untested):
    said = rf"str does not support {kind.__name__}, .*{reason}.*: use a single device, 'ddp' or"
    with pytest.raises(MisconfigurationException, match=said):
        check_strategy(trainer_with(kind), "", sharded=True, allow_untested=allow_untested)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_that_end_with_the_fit_are_refused(method):
    trainer = trainer_with(DDPStrategy)
    trainer.strategy._start_method = method
    with pytest.raises(MisconfigurationException, match="learned would end with them"):
        check_strategy(trainer, None, sharded=True, allow_untested=True)


def test_baselines_refuse_sharded_weights():
    with pytest.raises(MisconfigurationException, match="L2ToSnapshot does not support ModelPar"):
        check_strategy(trainer_with(ModelParallelStrategy), L2ToSnapshot())


def test_tensor_parallel_weights_were_never_tried():
    trainer = trainer_with(ModelParallelStrategy, tensor_parallel=2)
    with pytest.raises(MisconfigurationException, match="tensor_parallel_size=1"):
        check_strategy(trainer, None, sharded=True)
    check_strategy(trainer, None, sharded=True, allow_untested=True)


def test_an_untested_strategy_runs_only_if_allowed():
    with pytest.raises(MisconfigurationException, match=r"never tried with Mine.*allow_untested"):
        quiet_trainer(RecallCallback(), strategy=Mine("cpu")).fit(Plain(), loader(0))
    callback = RecallCallback(allow_untested=True)
    quiet_trainer(callback, strategy=Mine(torch.device("cpu"))).fit(Plain(), loader(0))
    assert callback.history
