import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import update_bn

from recall_lightning import RecallCallback
from recall_lightning.merging.rules import Uniform
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.weights.naming import named_weights
from tests.support.callbacks import Spy
from tests.support.training import Plain, loader, quiet_trainer


class Running(Spy):
    """Keeps the running mean from before a merge, the one after it, and the batches until it."""

    def __init__(self, buffers, **kwargs):
        super().__init__(every=1.0, rule=Uniform(0.5), buffers=buffers, **kwargs)
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.seen.append(batch[0])

    def look(self, pl_module):
        return pl_module.net[1].running_mean.clone()


def model(*more, norm=nn.BatchNorm1d):
    return Plain(nn.Sequential(nn.Linear(8, 6), norm(6), *more, nn.Linear(6, 2)))


def fitted(buffers, module=None, **kwargs):
    spy, module = Running(buffers, **kwargs), module or model()
    quiet_trainer(spy).fit(module, loader(0))
    assert len(spy.history) == 1
    return spy, module


def test_a_merged_mean_lies_between_the_snapshots_and_the_live_one():
    spy, _ = fitted("merge")
    then = spy.snapshots[0]["net.1.running_mean"]
    torch.testing.assert_close(spy.after, (then + spy.before) / 2)


class Statistics(Running):
    """Keeps the layer's whole statistics, before a merge and after it."""

    def look(self, pl_module):
        layer = pl_module.net[1]
        return layer.running_mean.clone(), layer.running_var.clone()


def test_a_merged_variance_is_that_of_the_activations_of_both_models():
    spy = Statistics("merge")
    quiet_trainer(spy).fit(model(), loader(0))
    then = [spy.snapshots[0][f"net.1.running_{each}"] for each in ("mean", "var")]
    drawn = [mean + var.sqrt() * torch.tensor([[-1.0], [1.0]]) for mean, var in (then, spy.before)]
    torch.testing.assert_close(spy.after[1], torch.cat(drawn).var(0, correction=0))
    assert (spy.after[1] > (then[1] + spy.before[1]) / 2).all()


def test_new_channels_keep_their_statistics_and_the_others_are_merged():
    spy, module = Statistics("merge"), model()
    quiet_trainer(spy).fit(module, loader(0))
    module.net = nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(9), nn.Linear(9, 2))
    quiet_trainer(spy).fit(module, loader(1))
    then = [spy.snapshots[0][f"net.1.running_{each}"] for each in ("mean", "var")]
    (mean, variance), after = spy.before, spy.after[1]
    assert torch.equal(after[6:], variance[6:])
    expected = (then[1] + variance) / 2 + (then[0] - mean) ** 2 / 4
    torch.testing.assert_close(after[:6], expected[:6])


@pytest.mark.parametrize("norm", [nn.LayerNorm, lambda size: nn.GroupNorm(2, size)])
def test_a_norm_without_statistics_is_merged_as_weights_are(norm):
    spy, module = Running("merge"), model(norm=norm)
    spy.look = lambda pl_module: {n: w.clone() for n, w in named_weights(pl_module).items()}
    quiet_trainer(spy).fit(module, loader(0))
    assert spy.after.keys() == spy.snapshots[0].keys()
    for name, then in spy.snapshots[0].items():
        assert torch.equal(spy.after[name], spy.before[name].lerp(then, 0.5))


def test_kept_statistics_are_not_touched_and_count_for_no_coefficient():
    spy, _ = fitted("keep")
    assert torch.equal(spy.after, spy.before)
    assert set(spy.history[0]["coefficient"].values()) == {0.5}


def test_recalibrated_statistics_are_those_of_torchs_own_averages_over_the_last_batches():
    spy, module = fitted("recalibrate", moments=MomentSettings(batches=3))
    measured = named_weights(module)["net.1.running_var"].clone()
    update_bn(spy.seen[-3:], module.net.train())
    assert not torch.equal(spy.after, spy.before)
    torch.testing.assert_close(spy.after, module.net[1].running_mean)
    torch.testing.assert_close(measured, module.net[1].running_var)


def test_recalibration_drops_nothing_and_leaves_no_other_trace():
    class Once(Running):
        def look(self, pl_module):
            assert all(child.training for child in pl_module.modules())
            batches = int(pl_module.net[1].num_batches_tracked)
            return super().look(pl_module), batches, torch.get_rng_state()

    module = Plain(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    spy = Once("recalibrate")
    quiet_trainer(spy).fit(module, loader(0))
    (_, batches, random), (after, *rest) = spy.before, spy.after
    everything = torch.stack([batch.mean(0) for batch in spy.seen]).mean(0)
    torch.testing.assert_close(after, everything)
    assert rest[0] == batches
    assert torch.equal(rest[1], random)
    assert module.net[1].momentum == 0.1


def test_instance_norm_is_averaged_too():
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    module = Plain(nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, 2)))
    spy, _ = fitted("recalibrate", module)
    means = [batch.unflatten(1, (2, 4)).mean(dim=(0, 2)) for batch in spy.seen]
    torch.testing.assert_close(spy.after, torch.stack(means).mean(0))


def test_a_layer_that_training_keeps_in_evaluation_mode_keeps_its_statistics():
    class Frozen(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            self.net[1].eval()

    _, module = fitted("recalibrate", Frozen(model().net))
    assert torch.equal(module.net[1].running_mean, torch.zeros(6))
    assert not module.net[1].training


class Overflowing(nn.Module):
    def forward(self, inputs):
        return inputs if self.training else inputs * float("inf")


def test_statistics_that_are_not_finite_are_not_taken():
    module = Plain(nn.Sequential(Overflowing(), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    with pytest.warns(UserWarning, match="running statistics were kept"):
        spy, _ = fitted("recalibrate", module)
    assert torch.equal(spy.after, spy.before)


def test_a_layer_without_statistics_has_none_to_recalibrate():
    recall = RecallCallback(every=1.0, rule=Uniform(0.5), buffers="recalibrate")
    module = model(norm=lambda size: nn.BatchNorm1d(size, track_running_stats=False))
    quiet_trainer(recall).fit(module, loader(0))
    assert len(recall.history) == 1


def test_a_forward_that_fails_leaves_statistics_as_they_were():
    class Strict(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.trained = self.net[1].running_mean.clone()
            return loss

        def forward(self, image):
            if hasattr(self, "trained"):  # the first batch was tried
                raise RuntimeError("no image")
            return self.net(image)

    module = Strict(model().net)
    with pytest.raises(MisconfigurationException, match="no image"):
        quiet_trainer(Running("recalibrate")).fit(module, loader(0))
    assert torch.equal(module.net[1].running_mean, module.trained)
    assert module.net[1].momentum == 0.1
