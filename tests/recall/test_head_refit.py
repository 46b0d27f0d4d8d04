"""A classifier's last layer is fitted anew after the merge at a task's end."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import ForgettingMonitor, MomentSettings, RecallCallback
from recall_lightning.data import TaskStream
from recall_lightning.merging.moved_inputs import MovedInputs
from recall_lightning.merging.rules import KfacSubspace
from recall_lightning.recall import head_refit, plasticity
from tests.support.callbacks import same, weights_of
from tests.support.training import Plain, quiet_trainer

TASKS = 3


def classes(task, samples=96, seed=0):
    """Two new classes a task, around points of their own."""
    generator = torch.Generator().manual_seed(10 * task + seed)
    centres = 0.7 * torch.randn(2 * TASKS, 8, generator=torch.Generator().manual_seed(5))
    labels = 2 * task + torch.randint(2, (samples,), generator=generator)
    inputs = centres[labels] + 0.5 * torch.randn(samples, 8, generator=generator)
    return TensorDataset(inputs, labels)


def loader(task):
    return DataLoader(classes(task), batch_size=8, shuffle=True)


def network(outputs=2 * TASKS, bias=True):
    body = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(64, outputs, bias=bias))


def fit(callback, *others, tasks=TASKS, model=None, **kwargs):
    torch.manual_seed(0)
    model = model or Plain(network())
    held_out = [DataLoader(classes(task, 200, seed=1), batch_size=200) for task in range(TASKS)]
    for task in range(tasks):
        trainer = quiet_trainer(callback, *others, max_epochs=10, **kwargs)
        trainer.fit(model, loader(task), held_out)
    return model


def recall(**kwargs):
    return RecallCallback(moments=MomentSettings(batches=12), **kwargs)


def average(refit_head):
    monitor = ForgettingMonitor("val/acc")
    fit(recall(refit_head=refit_head), monitor)
    return monitor.summary()["average"]


def test_tasks_of_new_classes_keep_theirs():
    assert average("auto") > average(False) + 0.03


def test_inputs_of_earlier_tasks_are_taken_along_as_the_layers_before_change():
    callback, given = recall(), classes(1).tensors[0]  # all of it, as twelve batches are
    model = fit(callback, tasks=1)
    means, before = means_of_first_task(callback), model.net[:-1](given).detach()
    quiet_trainer(callback, max_epochs=10).fit(model, loader(1))
    after = model.net[:-1](given).detach()
    predicted = model.net[-1](after).argmax(1)
    share = float((predicted >= 2).float().mean())  # as far as they are of new classes
    there = MovedInputs(means, before, predicted, share).by(after)
    assert 0 < share <= 1
    assert torch.allclose(means_of_first_task(callback), there, atol=1e-4)
    assert not torch.allclose(means, there, atol=0.1)


def means_of_first_task(callback):
    return callback.state_dict()["statistics"]["head_inputs"]["tasks"][0]["means"][:2]


def test_only_the_last_merge_of_a_task_that_is_not_the_first_does_so():
    callback = recall(every=0.5)
    fit(callback, tasks=2)
    found = [(record["task"], record.get("refitted")) for record in callback.history]
    assert found == [(0, None), (0, None), (1, None), (1, "net.4")]


@pytest.mark.parametrize(
    ("second", "new_inputs", "refitted"), [(1, 1e-3, "net.4"), (1, 1e3, None), (0, 1e-3, None)]
)
def test_from_random_weights_that_is_so_of_new_classes_of_which_a_merge_leaves_little(
    second, new_inputs, refitted
):
    rule = KfacSubspace(new_inputs=new_inputs)
    callback, model = recall(merge_first_task=False, rule=rule), Plain(network())
    for task in (0, second):
        quiet_trainer(callback, max_epochs=10).fit(model, loader(task))
    assert callback.history[-1].get("refitted") == refitted


@pytest.mark.parametrize(("second", "refitted"), [(1, "net.4"), (0, None)])
def test_from_random_weights_a_share_is_left_with_it_only_in_tasks_of_new_classes(second, refitted):
    callback, model = recall(merge_first_task=False, plasticity=0.9), Plain(network())
    for task in (0, second):
        quiet_trainer(callback, max_epochs=10).fit(model, loader(task))
    assert callback.history[-1].get("refitted") == refitted
    assert callback.history[-1]["plasticity"] == pytest.approx(0.9, abs=0.05)


def test_by_default_every_task_counts_once_and_else_a_share_of_the_gain_is_left():
    callback = recall()
    fit(callback)
    assert all(record["keep"] >= 1 for record in callback.history[1:])
    assert min(record["plasticity"] for record in callback.history[1:]) < 0.93
    asked = recall(plasticity=0.6)
    fit(asked, tasks=2)
    assert asked.history[-1]["plasticity"] == pytest.approx(0.6, abs=0.05)


def test_what_a_task_has_gained_is_not_all_given_up_for_that(monkeypatch):
    monkeypatch.setattr(plasticity, "_SOMETHING", 0.94)
    callback = recall()
    fit(callback)
    left = [record["plasticity"] for record in callback.history[1:] if record["keep"] < 1]
    assert left
    assert left == pytest.approx([0.94] * len(left), abs=0.03)


def test_a_merge_that_is_made_again_is_that_of_a_run_that_had_asked_for_it():
    found = []
    for share in (0.5, 0.8):  # the first task ends alike: nothing is merged there
        callback = recall(plasticity=share, keep_live=True, merge_first_task=False, every=1.0)
        found.append((callback, fit(callback, tasks=2)))
    (_, wanted), (callback, model) = found
    assert not torch.equal(wanted.net[4].weight, model.net[4].weight)
    callback.retune(model, 0.5)
    assert same(weights_of(wanted), weights_of(model))


class Frozen(Plain):
    """Trains all but its last layer."""

    def configure_optimizers(self):
        self.net[4].requires_grad_(False)
        return torch.optim.Adam(self.net[:4].parameters(), lr=1e-2)


class Scaled(Plain):
    """Its logits are not what a layer puts out."""

    def forward(self, inputs):
        return 2 * self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Values(Plain):
    """Predicts no classes."""

    def training_step(self, batch, batch_idx):
        one_hot = nn.functional.one_hot(batch[1], 2 * TASKS).float()
        return nn.functional.mse_loss(self.net(batch[0]), one_hot)


class HeadATask(Plain):
    """Has a last layer of its own for each task."""

    def __init__(self, net):
        super().__init__(net)
        self.heads = nn.ModuleList(nn.Linear(64, 2 * TASKS) for _ in range(TASKS))

    def forward(self, inputs, task):
        return self.heads[task](self.net[:4](inputs))

    def training_step(self, batch, batch_idx):
        task = int(batch[1][0]) // 2
        return nn.functional.cross_entropy(self(batch[0], task), batch[1])


def of_its_task(module, batch):
    return module(batch[0], int(batch[1][0]) // 2)


@pytest.mark.parametrize(
    ("kind", "view", "why"),
    [
        (Frozen, None, "not just what a trained linear layer puts out"),
        (Scaled, None, "not just what a trained linear layer puts out"),
        (Values, None, "it predicts no classes"),
        (HeadATask, of_its_task, "this task's was heads.1, earlier ones' heads.0"),
    ],
)
def test_where_nothing_can_be_fitted_who_asks_for_it_is_told_why(kind, view, why):
    callback = recall(refit_head=True, view=view)
    with pytest.warns(UserWarning, match=f"{why}, so refit_head does nothing"):
        fit(callback, tasks=2, model=kind(network()))
    assert [record["task"] for record in callback.history] == [0, 1]
    assert all("refitted" not in record for record in callback.history)


def test_how_far_the_layer_goes_for_that_is_not_told_as_forgotten(monkeypatch):
    original = head_refit.fitted_head
    far = lambda *args: tuple(10 * each for each in original(*args))  # noqa: E731
    monkeypatch.setattr(head_refit, "fitted_head", far)
    callback = recall()
    fit(callback, tasks=2)
    (merge,) = [each for each in callback.history if "refitted" in each]
    assert merge["quadratic_forgetting"]["merged"] < merge["quadratic_forgetting"]["live"]


def test_what_is_fitted_is_told_once(caplog):
    with caplog.at_level("INFO"):
        fit(recall())
    assert caplog.text.count("the last layer, net.4, is fitted anew") == 1


class Logarithms(Plain):
    """Its outputs are logarithms of probabilities."""

    def forward(self, inputs):
        return self.net(inputs).log_softmax(1)

    def training_step(self, batch, batch_idx):
        return nn.functional.nll_loss(self(batch[0]), batch[1])


def test_a_layer_before_a_log_softmax_is_fitted_as_one_without():
    logarithms, logits = Logarithms(network()), Plain(network())
    logits.load_state_dict(logarithms.state_dict())
    for model in (logarithms, logits):
        callback = recall()
        fit(callback, tasks=2, model=model)
        assert callback.history[-1]["refitted"] == "net.4"
    for one, other in zip(logarithms.parameters(), logits.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_a_share_of_the_gain_is_left_where_too_little_tells_of_the_new_classes():
    callback = RecallCallback(moments=MomentSettings(batches=6))
    torch.manual_seed(0)
    model = Plain(network())
    for task in range(2):
        batches = DataLoader(classes(task), batch_size=1, shuffle=True)
        quiet_trainer(callback, max_epochs=3).fit(model, batches)
    assert callback.history[-1]["refitted"] == "net.4"
    assert callback.history[-1]["plasticity"] == pytest.approx(0.95, abs=0.03)


class Skipping(Plain):
    """Leaves out what is not finite, as many a training_step does."""

    def training_step(self, batch, batch_idx):
        counts = batch[0].isfinite().all(1)
        return super().training_step((batch[0][counts], batch[1][counts]), batch_idx)


def test_an_input_that_is_not_finite_does_not_count():
    callback, model = recall(), Skipping(network())
    torch.manual_seed(0)
    for task in range(2):
        inputs, labels = classes(task).tensors
        inputs[-1] = torch.nan
        batches = DataLoader(TensorDataset(inputs, labels), batch_size=8)
        quiet_trainer(callback, max_epochs=3).fit(model, batches)
    assert callback.history[-1]["refitted"] == "net.4"
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("means", torch.zeros(2, 64), "has means of shape"),
        ("means", torch.full((7, 64), torch.nan), "other than finite float32 numbers"),
        ("counts", torch.zeros(7), "other than finite float32 numbers"),
        ("counts", torch.zeros(6), "has means of shape"),
    ],
)
def test_a_damaged_checkpoint_is_refused(entry, value, message):
    callback = recall()
    fit(callback, tasks=1)
    state = callback.state_dict()
    state["statistics"]["head_inputs"]["tasks"][0][entry] = value
    with pytest.raises(MisconfigurationException, match=f"head_inputs.tasks.0.*{message}"):
        recall().load_state_dict(state)


def test_a_layer_without_bias_is_fitted():
    callback = recall()
    fit(callback, tasks=2, model=Plain(network(bias=False)))
    assert callback.history[-1]["refitted"] == "net.4"


def test_a_run_that_resumes_fits_the_same_layer(tmp_path):
    pairs = [(classes(task), classes(task, seed=1)) for task in range(TASKS)]
    stream = TaskStream.from_datasets(pairs, batch_size=8, epochs_per_task=2)
    torch.manual_seed(0)
    straight = Plain(network())
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole = recall()
    epochs = {"max_epochs": 6, "reload_dataloaders_every_n_epochs": 1}
    trainer = quiet_trainer(whole, saved, enable_checkpointing=True, **epochs)
    trainer.fit(straight, datamodule=stream)
    resumed, callback = Plain(network()), recall()
    path = tmp_path / "epoch=2.ckpt"  # in the midst of the second task
    trainer = quiet_trainer(callback, **epochs)
    trainer.fit(resumed, datamodule=stream, ckpt_path=path, weights_only=False)
    assert callback.history[-1]["refitted"] == "net.4"
    assert same(weights_of(straight), weights_of(resumed))


def test_a_checkpoint_without_what_the_layer_was_given_goes_on_without_fitting_it(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_last=True)
    model = fit(recall(refit_head=False), saved, tasks=1, enable_checkpointing=True)
    callback = recall()
    trainer = quiet_trainer(callback, max_epochs=12)
    with pytest.warns(UserWarning, match="holds no head_inputs of the 1 task"):
        trainer.fit(model, loader(0), ckpt_path=saved.last_model_path, weights_only=False)
    quiet_trainer(callback, max_epochs=3).fit(model, loader(1))
    assert callback.history[-1]["task"] > 0
    assert "refitted" not in callback.history[-1]


def test_classes_that_have_come_in_a_task_are_not_what_was_predicted_before(monkeypatch):
    seen = []
    original = head_refit.fitted_head

    def watched(weight, bias, old, *args):
        seen.append(old.probabilities)
        return original(weight, bias, old, *args)

    monkeypatch.setattr(head_refit, "fitted_head", watched)

    model = Plain(network(outputs=2))
    callback = recall()
    torch.manual_seed(0)
    quiet_trainer(callback, max_epochs=3).fit(model, loader(0))
    old, model.net[4] = model.net[4], nn.Linear(64, 4)
    with torch.no_grad():
        model.net[4].weight[:2], model.net[4].bias[:2] = old.weight, old.bias
    quiet_trainer(callback, max_epochs=3).fit(model, loader(1))
    assert seen
    assert all(not each[:, 2:].any() for each in seen)
    assert callback.history[-1]["refitted"] == "net.4"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"refit_head": "yes"}, "must be True, False or 'auto'"),
        ({"refit_head": True, "rule": "rbf"}, "has no effect without a kfac rule"),
        ({"refit_head": True, "end_rule": "never"}, "has no effect without a kfac rule"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, message):
    with pytest.raises(MisconfigurationException, match=message):
        RecallCallback(**kwargs)
