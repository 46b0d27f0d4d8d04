import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from recall_lightning import RecallCallback
from recall_lightning.callbacks._trainer.resuming import random_state, restore_random_state
from recall_lightning.data.replay import ReplayBuffer
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.ewc_lora import UpdateConsolidation
from recall_lightning.methods.finch import Finch
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.kfac_penalty import KfacPenalty
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.low_lr import LowLearningRate
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.methods.osf import OrthogonalSubspace
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.methods.wise_ft import WiseFT
from recall_lightning.recall.settings import ImportanceSettings, MomentSettings, SnapshotSettings
from tests.callbacks.test_task_aware import StepsEachFourBatches
from tests.support.callbacks import FEW
from tests.support.resumed_runs import Random, differences, resumed_from_each, savers, stream, train
from tests.support.training import loader, quiet_trainer

EVERYWHERE = ["batch", "validation", "epoch"]


def few_batches(**kwargs):
    return stream(batch_size=18, **kwargs)  # three an epoch, the last one smaller


def recall(**kwargs):
    return lambda: [RecallCallback(every=2, **kwargs)]


@pytest.mark.parametrize(
    "trainer",
    [
        {"val_check_interval": 0.5},
        {"check_val_every_n_epoch": 2},
        {"accumulate_grad_batches": 4},
        {"max_steps": 20},
        {"max_steps": 7, "accumulate_grad_batches": 3, "val_check_interval": 0.5},
    ],
    ids=str,
)
def test_a_run_resumed_anywhere_ends_bit_for_bit_as_one_that_went_through(trainer, tmp_path):
    assert resumed_from_each(tmp_path, recall(), EVERYWHERE, stream, **trainer) == {}


def test_one_that_draws_figures_does_too(tmp_path):
    def short():  # each run draws for a second
        return few_batches(epochs_per_task=1)

    options = {"logger": True, "max_epochs": 2}
    assert resumed_from_each(tmp_path, recall(), EVERYWHERE, short, **options) == {}


METHODS = [AdaptiveInterval, ElasticWeightConsolidation, HalfFineTuning, L2ToSnapshot]
METHODS += [LowLearningRate, LearningWithoutForgetting, SequentialFinetuningAveraging, WiseFT]
METHODS += [Finch, KfacPenalty, OrthogonalSubspace, UpdateConsolidation]
CALLBACKS = {method.__name__: lambda method=method: [method()] for method in METHODS}
CALLBACKS["rbf"] = recall(rule="rbf", samples=FEW, snapshots=SnapshotSettings(number=2))
CALLBACKS["recalibrate"] = recall(buffers="recalibrate", moments=MomentSettings(batches=3))
CALLBACKS["gradients"] = recall(
    rule="rbf*importance",
    end_rule="subspace",
    samples=FEW,
    importance=ImportanceSettings("gradients", steps=4),
)


@pytest.mark.parametrize("callback", CALLBACKS.values(), ids=CALLBACKS)
def test_every_method_resumes_exactly(callback, tmp_path):
    assert resumed_from_each(tmp_path, callback, ["batch"], few_batches) == {}


@pytest.mark.parametrize(
    "options", [{"replay": ReplayBuffer(20)}, {"joint": True}], ids=["replay", "joint"]
)
def test_old_data_comes_back_in_its_order(options, tmp_path):
    def with_options():
        return few_batches(**options)

    assert resumed_from_each(tmp_path, recall(), ["batch"], with_options) == {}


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("max_steps", [-1, 28])
def test_a_loader_shuffled_by_the_global_generator_resumes_at_the_end_of_epochs(
    reload, max_steps, tmp_path
):
    trainer = {"reload_dataloaders_every_n_epochs": reload, "max_steps": max_steps}
    found = resumed_from_each(tmp_path, recall(), ["validation", "epoch"], **trainer)
    assert found == {}


def test_loggers_see_the_steps_they_would_have(tmp_path):
    class Steps(Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    seen = []
    train([*recall()(), Steps(), *savers(tmp_path, ["epoch"])], stream(), max_steps=20)
    whole, seen = seen, []
    train([*recall()(), Steps()], stream(), min(tmp_path.glob("*.ckpt")), max_steps=20)
    assert seen == whole[-len(seen) :]


def test_gradients_half_accumulated_come_back(tmp_path):
    class MidStep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (trainer.global_step, batch_idx) == (3, 4):
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    whole = train([*recall()(), MidStep()], stream(), accumulate_grad_batches=3)
    resumed = train(recall()(), stream(), tmp_path / "mid.ckpt", accumulate_grad_batches=3)
    assert differences(whole, resumed) == []


def test_gradients_accumulated_by_a_module_that_steps_at_will_come_back(tmp_path):
    def fit(*callbacks, checkpoint=None):
        torch.manual_seed(0)
        module, data = StepsEachFourBatches(), loader(0, samples=48, shuffle=False)
        saves = bool(callbacks)
        trainer = quiet_trainer(*recall()(), *callbacks, max_epochs=3, enable_checkpointing=saves)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return module.state_dict()

    whole = fit(*savers(tmp_path, ["epoch"]))
    assert differences(whole, fit(checkpoint=min(tmp_path.glob("*.ckpt")))) == []


def test_a_run_without_anything_left_to_train_shows_its_matrix(tmp_path, capsys):
    train([*recall()(), *savers(tmp_path, ["epoch"])], stream())
    capsys.readouterr()
    train(recall()(), stream(), max(tmp_path.iterdir()))
    assert "after task 1" in capsys.readouterr().out


def test_checkpoints_hold_nothing_that_needs_unpickling(tmp_path):
    callbacks = recall(rule="rbf*importance", end_rule="kfac_subspace", samples=FEW)()
    train([*callbacks, *savers(tmp_path, ["batch"])], stream())
    for path in tmp_path.iterdir():
        assert "recall_lightning" in torch.load(path, weights_only=True)


def test_another_number_of_processes_is_said(tmp_path):
    train([*recall()(), *savers(tmp_path, ["validation"])], stream())
    path = min(tmp_path.iterdir())
    checkpoint = torch.load(path)
    states = checkpoint["recall_lightning"]["random_states"]
    checkpoint["recall_lightning"]["random_states"] = states * 2
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="random states of 2 processes and there are 1"):
        train(recall()(), stream(), path)


def test_validating_a_checkpoint_restores_no_random_state(tmp_path):
    train([*recall()(), *savers(tmp_path, ["validation"])], stream())
    drawn = []
    for checkpoint in (None, min(tmp_path.iterdir())):
        torch.manual_seed(5)
        trainer = quiet_trainer(*recall()())
        trainer.validate(Random(), datamodule=stream(), ckpt_path=checkpoint, verbose=False)
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


def test_every_global_generator_is_put_back():
    cpu = torch.device("cpu")
    np.random.randn()  # leaves half of a pair behind
    random.gauss(0, 1)
    state = random_state(cpu)

    def draws():
        return [torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist()]

    drawn = draws()
    restore_random_state(state, cpu)
    assert draws() == drawn
