"""What a model predicts is read from the loss that it is trained on, and said."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from recall_lightning import RecallCallback
from recall_lightning.methods.lwf import LearningWithoutForgetting
from tests.support.callbacks import same, statistic, weights_of
from tests.support.training import Plain, quiet_trainer

torch.manual_seed(0)
X = torch.randn(32, 8)
CLASSES = torch.randint(0, 4, (32,))
TOLD = "takes what the model predicts for '{}', as the training loss tells"


def mlp(outputs, *tail):
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs), *tail)


class Trained(Plain):
    """Its training loss is a function of its outputs and of what else is in the batch."""

    def __init__(self, net, loss):
        super().__init__(net)
        self.loss = loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), *batch[1:], batch[0])


def fitted(net, loss, targets, inputs=X, module=Trained, trainer=quiet_trainer, **arguments):
    callback = RecallCallback(every=2, merge_first_task=False, **arguments)
    torch.manual_seed(0)
    model = module(net, loss)
    data = DataLoader(TensorDataset(inputs, *targets), 8)
    for _ in range(2):
        trainer(callback).fit(model, data)
    return callback, model


def ce(outputs, targets, *_):
    return functional.cross_entropy(outputs, targets)


def mse(outputs, targets, *_):
    return functional.mse_loss(outputs, targets.float())


def bce(outputs, targets, *_):
    return functional.binary_cross_entropy_with_logits(outputs, targets.float())


def reconstruction(outputs, labels, inputs):
    return ((outputs - inputs) ** 2).sum(1).mean() / 2


def after_softmax(outputs, targets, *_):
    return functional.nll_loss(outputs.log(), targets)


class Squeezes(nn.Module):
    def forward(self, x):
        return x.squeeze(-1)


LEVELS = (CLASSES[:, None] > torch.arange(4)).long()
CASES = {
    "autoencoder with labels": (mlp(8), reconstruction, CLASSES, "values"),
    "one-hot classes": (mlp(4), ce, functional.one_hot(CLASSES, 4).float(), "classes"),
    "soft labels": (mlp(4), ce, torch.randn(32, 4).softmax(-1), "classes"),
    "counts": (mlp(1, Squeezes()), mse, CLASSES, "values"),
    "zeros and ones that are numbers": (mlp(1, Squeezes()), mse, CLASSES % 2, "values"),
    "several labels": (mlp(4), bce, LEVELS.bool(), "binary"),
    "levels": (mlp(4), lambda o, y, _: bce(o, y[:, None] > torch.arange(4)), CLASSES, "binary"),
    "yes or no": (mlp(1, Squeezes()), bce, CLASSES % 2, "binary"),
    "classes after a softmax": (mlp(4, nn.Softmax(-1)), after_softmax, CLASSES, "classes"),
    "classes after a log softmax": (
        mlp(4, nn.LogSoftmax(-1)),
        lambda o, y, _: functional.nll_loss(o, y),
        CLASSES,
        "classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_training_loss_tells_the_kind(name, caplog, tmp_path):
    net, loss, targets, kind = CASES[name]
    with caplog.at_level("INFO"):
        callback, _ = fitted(
            net,
            loss,
            [targets],
            trainer=lambda c: Trainer(callbacks=[c], max_epochs=1, default_root_dir=tmp_path),
        )
    moments = statistic(callback, "moments")
    assert moments._predictions.kind.name == kind
    assert set(moments.known.outputs) == {"net.0.weight", "net.2.weight"}
    said = [r.message for r in caplog.records if "takes what" in r.message]
    assert len(said) == 1
    assert TOLD.format(kind) in said[0]


def test_an_autoencoder_is_kept_alike_whether_its_batches_hold_labels_or_not():
    def last(outputs, *rest):
        return reconstruction(outputs, None, rest[-1])

    results = []
    for targets in (CLASSES, X.clone()):
        torch.manual_seed(0)
        results.append(weights_of(fitted(mlp(8), last, [targets])[1]))
    assert same(*results)


def test_pixels_have_a_class_each():
    images, labels = torch.randn(16, 2, 6, 6), torch.randint(0, 3, (16, 6, 6))
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1))
    callback, _ = fitted(net, ce, [labels], inputs=images)
    moments = statistic(callback, "moments")
    assert moments._predictions.kind.name == "classes"
    assert set(moments.known.outputs) == {"net.0.weight", "net.2.weight"}


class PredictsProbabilities(Trained):
    """Its forward is for who uses it, its loss is of what the net puts out."""

    def forward(self, x):
        return self.net(x).softmax(-1)

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), *batch[1:], batch[0])


def test_a_forward_of_probabilities_has_the_curvature_of_their_logits():
    results = []
    for module in (Trained, PredictsProbabilities):
        torch.manual_seed(0)
        callback, model = fitted(mlp(4), ce, [CLASSES], module=module)
        results.append((weights_of(model), statistic(callback, "moments").known.outputs))
    for name, outputs in results[0][1].items():
        torch.testing.assert_close(results[1][1][name].matrix, outputs.matrix, rtol=1e-3, atol=1e-3)
    for name, weight in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], weight, rtol=1e-3, atol=1e-4)


def test_what_is_set_stays_and_a_loss_that_tells_otherwise_is_said():
    with pytest.warns(
        UserWarning, match="predictions='classes' is set, and the training loss.*'va"
    ):
        callback, _ = fitted(mlp(8), reconstruction, [CLASSES], predictions="classes")
    assert statistic(callback, "moments")._predictions.kind.name == "classes"


def test_what_is_set_for_an_autoencoder_is_no_contradiction_of_its_labels():
    class Elsewhere(Trained):
        def training_step(self, batch, batch_idx):  # nothing that the loss is seen to be made of
            return self.loss(self.net[2](self.net[0](batch[0]).relu()), *batch[1:], batch[0])

    callback, _ = fitted(mlp(8), reconstruction, [CLASSES], module=Elsewhere, predictions="values")
    assert statistic(callback, "moments")._predictions.kind.name == "values"
    with pytest.warns(
        UserWarning, match="for 'classes', as the batch tells, and it may be 'values"
    ):
        fitted(mlp(8), reconstruction, [CLASSES], module=Elsewhere)


def test_a_function_says_what_is_predicted():
    def poisson(outputs):
        return torch.distributions.Poisson(outputs.exp())

    def loss(outputs, counts, _):
        return functional.poisson_nll_loss(outputs[:, 0], counts.float())

    callback, _ = fitted(mlp(1), loss, [CLASSES], predictions=poisson)
    assert set(statistic(callback, "moments").known.outputs) == {"net.0.weight", "net.2.weight"}
    with pytest.raises(MisconfigurationException, match="returned Tensor"):
        fitted(mlp(1), loss, [CLASSES], predictions=torch.exp)


def test_listening_leaves_no_hooks_behind():
    _, model = fitted(mlp(4), ce, [CLASSES])
    assert not any(child._forward_hooks for child in model.modules())


def test_lwf_distils_what_the_loss_tells():
    callback = LearningWithoutForgetting(from_first_task=False)
    model = Trained(mlp(8), reconstruction)
    for _ in range(2):
        data = DataLoader(TensorDataset(X, CLASSES), 8)
        quiet_trainer(callback).fit(model, data)
    assert callback._predictions.kind.name == "values"


def test_lwf_refuses_before_the_first_task_what_it_could_not_distil_in_the_second():
    class Wrapped(Plain):
        steps = 0

        def forward(self, x):
            return {"scores": self.net(x)}

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return ce(self(batch[0])["scores"], batch[1])

    model = Wrapped(mlp(4))
    model.other = nn.Linear(1, 1)  # one child alone would be listened to
    callback = LearningWithoutForgetting(from_first_task=False)
    with pytest.raises(MisconfigurationException, match="found no logits"):
        quiet_trainer(callback).fit(model, DataLoader(TensorDataset(X, CLASSES), 8))
    assert model.steps == 1


class Heads(Trained):
    """Two heads of one shape, each a child, and a forward that returns the first, both or none."""

    def __init__(self, net, loss):
        super().__init__(net, loss)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return {"a": self.first(self.net(x)), "b": self.second(self.net(x))}

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return ce(outputs["a"], batch[1]) + mse(outputs["b"], batch[0][:, :4])


def test_of_heads_whose_outputs_are_not_found_nothing_is_told(caplog):
    with (
        caplog.at_level("INFO"),
        pytest.warns(UserWarning, match="dict with a, b, in which no log"),
    ):
        callback, _ = fitted(mlp(8), None, [CLASSES], module=Heads)
    assert "takes what" not in caplog.text
    assert statistic(callback, "moments").known.outputs == {}


def test_of_the_head_that_a_view_runs_its_targets_tell_where_heads_disagree(caplog):
    def run(module, batch):
        return module(batch[0])["a"]

    with caplog.at_level("INFO"):
        callback, _ = fitted(mlp(8), None, [CLASSES], module=Heads, view=run)
    assert "for 'classes', as the batch tells" in caplog.text
    assert "first.weight" in statistic(callback, "moments").known.outputs


class Decides(Trained):
    def forward(self, x):
        return self.net(x).argmax(-1)

    def training_step(self, batch, batch_idx):
        return ce(self.net(batch[0]), batch[1])


def test_a_forward_of_decisions_has_no_curvature_and_that_is_said_first(caplog):
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="has no gradient"):
        fitted(mlp(4), None, [CLASSES], module=Decides)
    assert "takes what" not in caplog.text
