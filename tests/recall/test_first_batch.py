"""A task's first batch tells, before it is trained, whether all can be measured that will be."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from tests.support.callbacks import FEW, same, statistic, weights_of
from tests.support.training import Plain, loader, quiet_trainer, task_data


class Reads(Plain):
    """Takes its inputs and labels out of a batch in its own way."""

    def __init__(self, read, net=None):
        super().__init__(net)
        self.read, self.steps = read, 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(self.read(batch), batch_idx)


class Forward(nn.Module):
    """Two layers behind a forward of one's own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Graph:
    """A batch that is no collection, but can be moved."""

    def __init__(self, nodes, y):
        self.nodes, self.y = nodes, y

    def to(self, device, **kwargs):
        return self


class GraphNet(Forward):
    def forward(self, graph):
        return super().forward(graph.nodes)


@dataclass
class Fields:
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Nested:
    inputs: dict
    labels: torch.Tensor


class NestedNet(Forward):
    def forward(self, inputs):
        return super().forward(inputs["a"][0])


Backwards = namedtuple("Backwards", ["y", "x"])


def of(make):
    def collate(rows):
        return make(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))

    return DataLoader(task_data(0), 8, collate_fn=collate)


READABLE = {
    "dataclass": (Fields, lambda b: (b.x, b.y), Forward),
    "nested": (lambda x, y: Nested({"a": [x]}, y), lambda b: (b.inputs, b.labels), NestedNet),
    "named tuple": (lambda x, y: Backwards(y, x), lambda b: (b.x, b.y), Forward),
    "tuple of mappings": (
        lambda x, y: ({"x": x}, {"y": y}),
        lambda b: (b[0]["x"], b[1]["y"]),
        Forward,
    ),
    "encoding": (
        lambda x, y: BatchEncoding({"x": x, "labels": y}),
        lambda b: (b["x"], b["labels"]),
        Forward,
    ),
    "graph": (Graph, lambda b: (b, b.y), GraphNet),
}


@pytest.mark.parametrize("name", READABLE)
def test_inputs_are_found_in_every_kind_of_batch_and_curvature_is_measured(name, tmp_path):
    make, read, net = READABLE[name]
    callback, model = RecallCallback(every=4, merge_first_task=False), Reads(read, net())
    for _ in range(2):
        trainer = Trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(model, of(make))
    assert set(statistic(callback, "moments").known.outputs) == {
        "net.first.weight",
        "net.second.weight",
    }
    assert [record["task"] for record in callback.history] == [1, 1]


class Adversarial(LightningModule):
    """Its forward makes samples of noise, which no batch holds."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(3, 8), nn.Linear(8, 1)
        self.steps = 0

    def forward(self, noise):
        return self.generator(noise)

    def training_step(self, batch, batch_idx):
        self.steps += 1

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.critic)]


class Headless(Plain):
    """Two children and no forward."""

    def __init__(self):
        super().__init__()
        self.other, self.steps = nn.Linear(2, 2), 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)


def first(batch):
    return batch["a"]


UNREADABLE = {
    "dataclass of other names": (
        lambda: Reads(lambda b: (b.inputs, b.labels), Forward()),
        lambda: of(Nested),
        r"\(Nested with entries inputs, labels\).*pass view=",
    ),
    "several loaders": (
        lambda: Reads(first, Forward()),
        lambda: CombinedLoader({"a": loader(0), "b": loader(1)}, "max_size_cycle"),
        r"entries a, b\)",
    ),
    "noise": (Adversarial, lambda: loader(0), "Adversarial could not be run"),
    "no forward": (Headless, lambda: loader(0), "defines no forward"),
    "an object": (
        lambda: Reads(lambda b: (b.nodes, b.y), Forward()),
        lambda: of(Graph),
        "Graph",
    ),
}


@pytest.mark.parametrize("merge_first_task", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"rule": "rbf", "samples": FEW}, {"rule": "subspace"}],
    ids=["curvature", "samples", "moments"],
)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_run_is_refused_before_the_first_step(name, arguments, merge_first_task):
    make, data, message = UNREADABLE[name]
    model, callback = make(), RecallCallback(merge_first_task=merge_first_task, **arguments)
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(callback).fit(model, data())
    assert model.steps == 0


def test_running_statistics_that_cannot_be_measured_anew_are_refused_before_the_first_step():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = Reads(lambda b: (b.inputs, b.labels), net)
    callback = RecallCallback(rule=Uniform(0.2), buffers="recalibrate", merge_first_task=False)
    with pytest.raises(MisconfigurationException, match="Nested"):
        quiet_trainer(callback).fit(model, of(Nested))
    assert model.steps == 0


def test_a_later_task_with_batches_of_another_kind_is_refused_at_its_start():
    model, callback = Reads(lambda b: b, None), RecallCallback()
    quiet_trainer(callback).fit(model, loader(0))
    model.read, model.steps = (lambda b: (b.inputs, b.labels)), 0
    with pytest.raises(MisconfigurationException, match="Nested"):
        quiet_trainer(callback).fit(model, of(Nested))
    assert model.steps == 0


def test_curvature_that_has_no_kind_of_prediction_is_said_at_the_start():
    class Two(Forward):
        def forward(self, x):
            return {"a": super().forward(x), "b": x}

    class Stops(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise KeyboardInterrupt
            return self.net(batch[0])["a"].sum()

    with (
        pytest.warns(UserWarning, match="curvature cannot be measured.*dict with a, b"),
        pytest.raises(SystemExit),
    ):
        quiet_trainer(RecallCallback(merge_first_task=False)).fit(Stops(Two()), loader(0))


class Unchecked(RecallCallback):
    """Without the trial on a task's first batch."""

    @property
    def _first_batch_is_checked(self):
        return True

    @_first_batch_is_checked.setter
    def _first_batch_is_checked(self, value):
        pass


class Clamps(nn.Module):
    """Changes its input in place, and counts on running statistics and chance."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 2)
        )

    def forward(self, x):
        return self.layers(x.sub_(0.1))


class Watches(Plain):
    """Notes what its first step finds."""

    def training_step(self, batch, batch_idx):
        if not hasattr(self, "found"):
            self.found = (batch[0].clone(), torch.rand(1), self.net.training)
            assert all(p.grad is None for p in self.parameters())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rule": "rbf", "samples": FEW},
        {"rule": "subspace", "merge_first_task": False},
        {"rule": Uniform(0.3), "buffers": "recalibrate"},
    ],
    ids=["curvature", "samples", "moments", "recalibration"],
)
def test_a_run_with_the_trial_equals_one_without_bit_for_bit(arguments, tmp_path):
    runs = []
    for kind in (RecallCallback, Unchecked):
        torch.manual_seed(0)
        callback, model = kind(every=3, **arguments), Watches(Clamps())
        for task in range(2):
            trainer = Trainer(callbacks=[callback], max_epochs=2, default_root_dir=tmp_path)
            trainer.fit(model, loader(task), [loader(0), loader(1)])
        runs.append((model, callback, torch.get_rng_state()))
    (one, with_trial, state), (other, without, other_state) = runs
    assert same(weights_of(one), weights_of(other))
    assert torch.equal(state, other_state)
    assert all(map(torch.equal, one.found[:2], other.found[:2]))
    assert one.found[2]
    times = ("probe_seconds", "merge_seconds")
    histories = [
        [{name: value for name, value in record.items() if name not in times} for record in history]
        for history in (with_trial.history, without.history)
    ]
    assert histories[0] == histories[1]
    assert len(with_trial.history) > 3


class Scales(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Spare(Forward):
    """A layer that nothing calls, and one that scales what it computes."""

    def __init__(self):
        super().__init__()
        self.first, self.spare = Scales(8, 16), nn.Linear(3, 3)


@pytest.mark.parametrize("rule", ["kfac_importance", "subspace"])
def test_layers_that_are_no_linear_maps_or_compute_nothing_are_named(rule, tmp_path):
    callback = RecallCallback(rule=rule, every=4)
    trainer = Trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path)
    with (
        pytest.warns(UserWarning, match=r"does with net\.first\.weight is not y = Wx \+ b, so"),
        pytest.warns(UserWarning, match=r"net\.spare\.weight had no inputs"),
    ):
        trainer.fit(Plain(Spare()), loader(0))
    assert set(statistic(callback, "moments").known.inputs) == {"net.second.weight"}
    assert "net.first.weight" in callback._structure.others
