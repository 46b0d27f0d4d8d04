import math
from dataclasses import replace

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning import RecallCallback
from recall_lightning.weights.snapshot import Snapshot
from tests.support.callbacks import FEW, assert_fails_at_start, recall, same, statistic
from tests.support.training import Plain, loader, quiet_trainer, task_data


class BeforeTheEnd(Callback):
    """Sees the typical samples before the task's end, after which they are gone."""

    def on_train_batch_end(self, trainer, *_):
        recalling = next(each for each in trainer.callbacks if isinstance(each, RecallCallback))
        samples = statistic(recalling, "samples")
        self.typical, self.snapshot_states = samples._typical, samples.snapshot_states


def test_an_iterable_dataset_is_read_once_and_by_training_alone():
    class Once(IterableDataset):
        read = 0

        def __iter__(self):
            for sample in task_data(0):
                Once.read += 1
                yield sample

    callback = recall(every=3)
    quiet_trainer(callback).fit(Plain(), DataLoader(Once(), batch_size=8))
    assert Once.read == 64
    assert [record["step"] for record in callback.history] == [3, 6, 8]


def test_candidates_from_training_are_measured_under_the_snapshots_weights():
    """The pool is full after four steps: the snapshot's states must not be the live model's."""
    stream = DataLoader(
        list(task_data(0)),
        batch_size=8,
        sampler=torch.utils.data.WeightedRandomSampler([1.0] * 64, 64),
    )
    callback, model, at_end = recall(every=8), Plain(), BeforeTheEnd()
    before = Snapshot.take(model)
    quiet_trainer(at_end, callback).fit(model, stream)
    assert same(dict(callback.snapshots[-1]), dict(before))
    with before.applied_to(model):
        states = model.net[:2](at_end.typical[0][0])
    torch.testing.assert_close(at_end.snapshot_states[0]["net.0"], states)


def test_a_training_step_may_take_its_batch_apart():
    class Pops(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch.pop("x"), batch.pop("y")), batch_idx)

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ({"x": x, "y": y} for x, y in task_data(0))

    callback = recall(every=2, view=lambda module, batch: module.net(batch.pop("x")))
    quiet_trainer(callback).fit(Pops(), DataLoader(Endless(), batch_size=8))
    assert len(callback.history) == 4


def test_fewer_data_than_typical_samples():
    assert_fails_at_start(
        Plain(), loader(0, samples=5), "samples.typical=8 cannot be chosen from the 5"
    )


def test_a_probe_that_is_not_finite():
    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Plain().net

        def forward(self, inputs):
            return self.layers(inputs) if self.training else self.layers(inputs * math.inf)

    assert_fails_at_start(Plain(Overflows()), loader(0), "hold NaN or infinite values")


def test_random_samples_are_drawn_by_the_seed_and_measured_like_others():
    def typical(seed):
        torch.manual_seed(0)
        callback = recall(every=4, samples=replace(FEW, sampling="random"), seed=seed)
        at_end = BeforeTheEnd()
        quiet_trainer(at_end, callback).fit(Plain(), loader(0))
        assert 0.26 < min(callback.history[0]["coefficient"].values()) <= 0.5
        return torch.cat([batch[0] for batch in at_end.typical])

    assert typical(0).shape == (8, 8)
    assert len(typical(0).unique(dim=0)) == 8
    assert torch.equal(typical(1), typical(1))
    assert not torch.equal(typical(0), typical(1))
