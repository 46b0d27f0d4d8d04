"""What several tests of baselines need."""

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from tests.support.training import Plain, quiet_trainer, task_data


class Gradients(Callback):
    """Keeps the gradients before each optimizer step, as they are where it stands in the list."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        self.steps.append(({n: g.clone() for n, g in gradients.items()}, weights))


def added_gradients(callback, model, data, **kwargs):
    """Fit, and return for each step what the callback added to the gradients, and the weights."""
    before, after = Gradients(), Gradients()
    quiet_trainer(before, callback, after, **kwargs).fit(model, data)
    return [
        ({name: there[name] - here[name] for name in here}, weights)
        for (here, weights), (there, _) in zip(before.steps, after.steps, strict=True)
    ]


def autograd(penalty, weights):
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    penalty(leaves).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def assert_same(one, other, **kwargs):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **kwargs)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


class StopAfter(Callback):
    def __init__(self, batches, path):
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.batches:
            trainer.save_checkpoint(self.path)


def trained_with_a_break(make, path, stop_after=12, model=Plain):
    """Train two tasks of 8 steps at once, and again from a checkpoint in the midst of the second.

    Returns:
        The weights of both, and the callback that was resumed.
    """
    # all batches alike: a dataloader without a state starts from its first after a resume
    data = DataLoader([task_data(0)[i % 8] for i in range(64)], batch_size=8)
    torch.manual_seed(1)
    whole = model()
    saved = StopAfter(stop_after, path)
    quiet_trainer(make(), saved, max_epochs=2).fit(whole, data)
    resumed, callback = model(), make()
    quiet_trainer(callback, max_epochs=2).fit(resumed, data, ckpt_path=path, weights_only=True)
    return weights_of(whole), weights_of(resumed), callback
