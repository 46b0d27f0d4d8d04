"""Callbacks and rules that show what RecallCallback does."""

import copy

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning import MergeRule, RecallCallback
from recall_lightning.recall.settings import SampleSettings
from recall_lightning.weights.naming import named_weights
from tests.support.training import quiet_trainer

FEW = SampleSettings(typical=8, pool=32)
BLOCKS = ("net.0", "net.2", "net.4")
"""Those of ``Plain``."""


def recall(**kwargs):
    """RECALL's own rule, in the loop and at the task's end, on few samples."""
    return RecallCallback(**({"rule": "rbf", "samples": FEW} | kwargs))


def statistic(callback, name):
    """The statistic of a name that a callback's rules need; None if none of them does."""
    return next((each for each in callback._statistics.active if each.name == name), None)


def assert_fails_at_start(module, data, message, **arguments):
    callback = recall(**arguments)
    with pytest.raises(MisconfigurationException, match=message):
        quiet_trainer(callback).fit(module, data)
    assert callback.history == []


def weights_of(module):
    """Copies of what is merged, by name."""
    return {name: tensor.detach().clone() for name, tensor in named_weights(module).items()}


def same(one, other):
    """Whether two sets of weights are equal bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def divergence(snapshot, module, batches):
    """KL(snapshot ‖ module), the mean over the batches' samples, of a ``Plain``."""
    then = copy.deepcopy(module)
    then.load_state_dict(snapshot, strict=False)
    inputs = torch.cat([batch[0] for batch in batches])
    old, new = (each.net(inputs).log_softmax(-1) for each in (then, module))
    return nn.functional.kl_div(new, old, reduction="batchmean", log_target=True).item()


class Fixed(MergeRule):
    """A rule of the user's own: given coefficients, and 0 for all other blocks."""

    def __init__(self, coefficients, strength=1.0):
        super().__init__(strength)
        self.given = coefficients

    def coefficients(self, inputs):
        return {b.name: self.given.get(b.name, 0.0) for b in inputs.blocks}


class Spy(RecallCallback):
    """Keeps what ``look`` saw ``before`` the last merge, and ``after`` it."""

    before = after = None

    def look(self, pl_module):
        return weights_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        seen, merges = self.look(pl_module), len(self.history)
        super().on_train_batch_end(trainer, pl_module, *args)
        if len(self.history) > merges:
            self.before, self.after = seen, self.look(pl_module)


class Never(RecallCallback):
    """Measures and gathers, and never merges."""

    def should_merge(self, step_in_task, task_steps):
        return False
