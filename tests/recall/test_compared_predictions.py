import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback
from recall_lightning.measuring.view import ModelView
from recall_lightning.merging.rules import Uniform
from tests.support.training import Plain, loader, quiet_trainer, task_data

RUNS = []  # no attribute: those are put back


class Counted(Plain):
    def forward(self, inputs):
        RUNS.append(self.training)
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Variadic(Counted):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Scaled(Counted):
    def training_step(self, batch, batch_idx):  # what the model predicts is of other inputs
        return nn.functional.cross_entropy(self(batch[0] * 2), batch[1])


class InPlace(Counted):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0].mul_(2)), batch[1])


class Twice(Counted):
    def training_step(self, batch, batch_idx):
        self(batch[0])
        return super().training_step(batch, batch_idx)


class Trained(Counted):
    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.Dropout())

    def training_step(self, batch, batch_idx):
        self.train()
        return super().training_step(batch, batch_idx)


class Sharpened(Counted):
    def forward(self, inputs, temperature=1.0):
        return super().forward(inputs) / temperature

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0], temperature=0.2), batch[1])


class Replaced(Counted):
    def training_step(self, batch, batch_idx):
        batch[0] = batch[0] * 2
        return super().training_step(batch, batch_idx)


class Reversed(Counted):
    def forward(self, inputs, others):
        return super().forward(inputs) + others[:, :2]

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[1], batch[0]), batch[2])


class Both(ModelView):
    def forward(self, module, batch):
        return module(batch[0], batch[1])


class Inside(Counted):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Aside(Counted):
    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        loss = nn.functional.cross_entropy(outputs, batch[1])
        outputs.detach().zero_()
        return loss


class Mapped(ModelView):
    def forward(self, module, batch):
        return module(batch[0])


def merged(kind, view=None, data=None):
    """Return a merge, how often the model was run, and how many steps were for the merge."""
    torch.manual_seed(0)
    RUNS.clear()
    callback = RecallCallback(rule=Uniform(0.5), every=1.0, plasticity=0.9, view=view)
    quiet_trainer(callback).fit(kind(), data or loader(0))
    record = callback.history[0]
    return record, RUNS.count(False), 4 * (len(record["front"]) + 3)


@pytest.mark.parametrize("kind", [Counted, Variadic])
def test_predictions_are_taken_from_the_step_that_measures_the_loss(kind):
    _, runs, steps = merged(kind)
    _, with_a_view, _ = merged(kind, Mapped())
    assert with_a_view - runs == steps


def test_they_are_those_that_a_view_has():
    (one, *_), (other, *_) = merged(Counted), merged(Counted, Mapped())
    assert one["divergence"] == other["divergence"]
    assert one["front"] == other["front"]


def test_what_is_written_into_outputs_afterwards_does_not_count():
    (one, *_), (other, *_) = merged(Aside), merged(Aside, Mapped())
    assert one["front"] == other["front"]


@pytest.mark.parametrize("kind", [Scaled, InPlace, Replaced, Twice, Trained, Sharpened, Inside])
def test_where_a_step_runs_the_model_otherwise_it_is_run_for_them(kind):
    (one, runs, _), (other, with_a_view, _) = merged(kind), merged(kind, Mapped())
    assert one["front"] == other["front"]
    assert runs == with_a_view


def test_inputs_that_a_step_gives_in_another_order_are_not_those_of_a_view():
    inputs, targets = task_data(0).tensors
    data = DataLoader(TensorDataset(inputs, task_data(1).tensors[0], targets), 8)
    (one, *_), (other, *_) = (merged(Reversed, view, data) for view in (None, Both()))
    assert one["front"]
    assert one["front"] == other["front"]


def test_a_step_that_leaves_the_module_in_training_is_evaluated_all_the_same():
    modes = []

    def seen(module, batch):
        modes.append(module.training)
        return module(batch[0])

    merged(Trained, seen)
    assert not any(modes)
