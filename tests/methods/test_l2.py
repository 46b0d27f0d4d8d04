import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from recall_lightning.methods.l2 import L2ToSnapshot
from tests.support.baseline_tools import (
    added_gradients,
    assert_same,
    autograd,
    trained_with_a_break,
    weights_of,
)
from tests.support.training import Plain, loader, quiet_trainer


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_added_is_the_gradient_of_the_written_out_penalty(accumulate):
    model = Plain()
    start = weights_of(model)

    def penalty(weights):
        return 3.0 / 2 * sum(((weights[name] - start[name]) ** 2).sum() for name in start)

    added = added_gradients(L2ToSnapshot(3.0), model, loader(0), accumulate_grad_batches=accumulate)
    assert len(added) == 8 // accumulate
    for extra, weights in added:
        assert_same(extra, autograd(penalty, weights), atol=1e-6, rtol=1e-5)
    assert any(extra["net.0.weight"].abs().max() > 1e-3 for extra, _ in added)


def test_the_snapshot_is_of_the_current_tasks_start():
    callback, model = L2ToSnapshot(1.0), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    boundary = weights_of(model)
    quiet_trainer(callback).fit(model, loader(1))
    assert_same(dict(callback.anchor), boundary)


def test_a_model_from_random_weights_is_not_held_back_in_its_first_task():
    callback, model = L2ToSnapshot(1.0, from_first_task=False), Plain()
    for task, held in enumerate([False, True]):
        added = added_gradients(callback, model, loader(task))
        assert any(bool(value.any()) for extra, _ in added for value in extra.values()) == held


def test_more_strength_keeps_closer():
    distances = []
    for strength in (0.0, 1.0, 100.0):
        torch.manual_seed(0)
        model = Plain()
        start = weights_of(model)
        quiet_trainer(L2ToSnapshot(strength), max_epochs=4).fit(model, loader(0))
        distances.append(sum((weights_of(model)[n] - start[n]).norm().item() for n in start))
    assert distances[0] > distances[1] > distances[2]


def test_clipping_takes_loss_and_penalty_together():
    class Norm(Plain):
        def configure_gradient_clipping(self, *args, **kwargs):
            super().configure_gradient_clipping(*args, **kwargs)
            norms.append(nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())

    norms = []
    trainer = quiet_trainer(L2ToSnapshot(1e4), gradient_clip_val=0.5)
    trainer.fit(Norm(), loader(0))
    assert max(norms) == pytest.approx(0.5, rel=1e-4)


class TwoHeads(LightningModule):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(8, 2), nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.used(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)


def test_weights_without_a_gradient_are_left_alone():
    model = TwoHeads()
    start = weights_of(model)
    quiet_trainer(L2ToSnapshot(1.0)).fit(model, loader(0))
    assert torch.equal(model.idle.weight, start["idle.weight"])
    assert not torch.equal(model.used.weight, start["used.weight"])


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
        for optimizer in self.optimizers():
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 2, 4)]


def test_with_several_optimizers_each_weight_gets_its_pull_once_a_step():
    callback, model = L2ToSnapshot(2.0), Manual()
    start = weights_of(model)
    own = {0: "net.0.weight", 1: "net.2.weight", 2: "net.4.weight"}
    for i, (extra, weights) in enumerate(added_gradients(callback, model, loader(0))):
        for which, name in own.items():
            pull = 2 * (weights[name] - start[name]) * (i % 3 == which)
            torch.testing.assert_close(extra[name], pull, atol=1e-6, rtol=1e-5)


def test_sparse_gradients_get_the_pull_of_their_rows():
    class Table(LightningModule):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 1, sparse=True)

        def on_before_optimizer_step(self, optimizer):
            self.sparse = self.table.weight.grad.is_sparse

        def training_step(self, batch, batch_idx):
            return self.table(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Table()
    start = model.table.weight.detach().clone()
    batches = [[torch.tensor([0, 1, 1])]] * 3
    quiet_trainer(L2ToSnapshot(1.0)).fit(
        model, torch.utils.data.DataLoader(batches, batch_size=None)
    )
    drift = torch.zeros(3, 1)
    for _ in range(3):
        drift -= 0.1 * (torch.tensor([[1.0], [2.0], [0.0]]) + drift)
    assert model.sparse
    torch.testing.assert_close(model.table.weight.detach() - start, drift)


def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, resumed, _ = trained_with_a_break(
        lambda: L2ToSnapshot(5.0, task_epochs=1), tmp_path / "mid.ckpt"
    )
    assert_same(whole, resumed, rtol=0, atol=0)


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf")])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(MisconfigurationException, match="strength="):
        L2ToSnapshot(strength)
