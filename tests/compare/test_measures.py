import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import TensorDataset

from recall_lightning.compare import measures
from recall_lightning.compare.measures import (
    HookProfiler,
    extra_bytes,
    method_callback,
    tensor_bytes,
    training_bytes,
)
from recall_lightning.data import ReplayBuffer, TaskStream
from tests.support.training import Plain, loader, quiet_trainer


class Ticks(Callback):
    """Lets a clock of its own go on by one in two of its hooks."""

    clock = 0.0

    def on_train_batch_end(self, *args):
        Ticks.clock += 1.0

    def on_fit_start(self, trainer, pl_module):
        Ticks.clock += 1.0

    def state_dict(self):
        return {"kept": [torch.zeros(3), {"more": torch.zeros(2, dtype=torch.float64)}]}


class TicksToo(Callback):
    def on_train_batch_start(self, *args):
        Ticks.clock += 100.0


def fitted(*callbacks, model=None, **kwargs):
    trainer = quiet_trainer(*callbacks, **kwargs)
    trainer.fit(model or Plain(), loader(0, samples=32))
    return trainer


def test_the_seconds_are_those_inside_the_callbacks_own_hooks(monkeypatch):
    monkeypatch.setattr(measures.time, "perf_counter", lambda: Ticks.clock)
    profiler = HookProfiler()
    fitted(Ticks(), TicksToo(), profiler=profiler)
    assert profiler.seconds_in("Ticks") == 1 + 4
    assert profiler.seconds_in("TicksToo") == 400


def test_the_callback_is_that_of_the_very_class():
    class Special(Ticks):
        pass

    special, plain = Special(), Ticks()
    trainer = quiet_trainer(special, plain)
    assert method_callback(trainer, Ticks) is plain
    assert method_callback(trainer, Special) is special
    assert method_callback(trainer, None) is None
    assert method_callback(trainer, Plain) is None


def test_adam_trains_with_four_times_the_weights_and_frozen_ones_count_once():
    model = Plain()
    model.frozen = torch.nn.Parameter(torch.zeros(1000), requires_grad=False)
    trained = sum(p.nbytes for p in model.net.parameters())
    steps = 4 * len(list(model.net.parameters()))  # Adam counts each parameter's steps
    trainer = fitted(model=model)
    assert training_bytes(trainer, model) == 4 * trained + 4000 + steps


def test_extra_memory_is_the_state_of_the_callback():
    trainer = fitted(Ticks())
    assert extra_bytes(trainer, Ticks, needs_old_data=False) == 3 * 4 + 2 * 8
    assert extra_bytes(trainer, None, needs_old_data=False) == 0


def test_stored_samples_count_and_all_old_data_has_no_number():
    sets = [TensorDataset(torch.zeros(20, 8), torch.zeros(20).long()) for _ in range(2)]
    pairs = [(each, each) for each in sets]
    trainer = quiet_trainer()
    trainer.datamodule = TaskStream.from_datasets(pairs, replay=ReplayBuffer(capacity=5))
    assert extra_bytes(trainer, None, needs_old_data=True) == 5 * (8 * 4 + 8)
    trainer.datamodule = TaskStream.from_datasets(pairs, joint=True)
    assert extra_bytes(trainer, None, needs_old_data=True) is None


@pytest.mark.parametrize("nothing", [{}, [], None, 3, "text"])
def test_what_holds_no_tensor_has_no_bytes(nothing):
    assert tensor_bytes(nothing) == 0
