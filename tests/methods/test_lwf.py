import copy
import math
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributions, nn
from torch.distributions import kl_divergence
from torch.nn import functional
from torch.utils.data import DataLoader

from recall_lightning import RecallCallback
from recall_lightning.measuring.predictions import Bernoulli
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.models import CausalLMModule, ClassifierModule
from tests.measuring.test_isolation import Lora
from tests.support.baseline_tools import assert_same, trained_with_a_break, weights_of
from tests.support.training import Plain, loader, quiet_trainer


def by_hand(student, teacher, temperature):
    """Σ_c p_c (ln p_c − ln q_c) · T², p of the teacher, q of the student."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(x / temperature) for x in s]
        p = [math.exp(x / temperature) for x in t]
        pairs = [(x / sum(p), y / sum(q)) for x, y in zip(p, q, strict=True)]
        total += sum(x * (math.log(x) - math.log(y)) for x, y in pairs)
    return temperature**2 * total / len(student)


class Seen(Plain):
    """Takes no step; moves away from the teacher at once, and keeps batch and gradients."""

    def __init__(self, net=None):
        super().__init__(net)
        self.batches, self.losses = [], []

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 0:
            self.start = weights_of(self)
            with torch.no_grad():
                for parameter in filter(lambda p: p.requires_grad, self.parameters()):
                    parameter += 0.3 * torch.randn_like(parameter)
        self.batches.append(batch)

    def on_before_zero_grad(self, optimizer):
        self.gradients = {n: p.grad for n, p in self.named_parameters()}

    def on_train_end(self):
        self.gradients = {n: p.grad for n, p in self.named_parameters()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def expected_gradients(model, strength, temperature, batches, scale=1.0):
    """Of the losses written out, with the teacher as a second network."""
    teacher, student = Plain(copy.deepcopy(model.net)), Plain(copy.deepcopy(model.net))
    teacher.load_state_dict(model.start)
    teacher.eval()
    student.zero_grad()
    for inputs, labels in batches:
        p = (teacher.net(inputs) / temperature).softmax(-1).detach()
        log_q = (student.net(inputs) / temperature).log_softmax(-1)
        divergence = (p * (p.log() - log_q)).sum(-1).mean()
        task = functional.cross_entropy(student.net(inputs), labels)
        (scale * (task + strength * temperature**2 * divergence)).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_gradient_of_a_step_is_that_of_task_loss_plus_divergence(accumulate):
    model = Seen()
    callback = LearningWithoutForgetting(strength=0.7, temperature=3.0)
    quiet_trainer(callback, accumulate_grad_batches=accumulate).fit(model, loader(0))
    last = model.batches[-accumulate:]
    expected = expected_gradients(model, 0.7, 3.0, last, 1 / accumulate)
    assert_same(model.gradients, expected)


def test_a_teacher_that_adds_its_adapter_for_evaluation_adds_its_own():
    torch.manual_seed(0)
    model = Seen(nn.Sequential(nn.Linear(8, 4), Lora(), nn.Linear(4, 2)))
    frozen = model.net[1].weight.clone()
    quiet_trainer(LearningWithoutForgetting(0.7, 3.0)).fit(model, loader(0))
    assert_same(model.gradients, expected_gradients(model, 0.7, 3.0, model.batches[-1:]))
    assert torch.equal(model.net[1].weight, frozen)


class Manual(Seen):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


def test_manual_optimization():
    model = Manual()
    quiet_trainer(LearningWithoutForgetting(0.7, 3.0)).fit(model, loader(0))
    assert_same(model.gradients, expected_gradients(model, 0.7, 3.0, model.batches[-1:]))


def test_under_amps_scaler_the_gradient_is_the_same():
    class Wide(MixedPrecision):
        """16-mixed, as it scales, without half precision."""

        def forward_context(self):
            return nullcontext()

    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    plugin = Wide("16-mixed", "cpu", scaler=scaler)
    model = Seen()
    trainer = quiet_trainer(LearningWithoutForgetting(0.7, 3.0), plugins=[plugin])
    trainer.fit(model, loader(0))
    assert_same(model.gradients, expected_gradients(model, 0.7, 3.0, model.batches[-1:]))


def test_a_model_from_random_weights_has_no_teacher_in_its_first_task():
    def train(*callbacks, task):
        torch.manual_seed(0)
        model = Plain()
        for i in range(task + 1):
            quiet_trainer(*callbacks).fit(model, loader(i))
        return weights_of(model)

    callback = LearningWithoutForgetting(10.0, from_first_task=False)
    assert_same(train(task=0), train(callback, task=0), rtol=0, atol=0)
    assert callback.teacher is None
    callback = LearningWithoutForgetting(10.0, from_first_task=False)
    plain, distilled = train(task=1), train(callback, task=1)
    assert not torch.equal(plain["net.0.weight"], distilled["net.0.weight"])


class BatchNormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 2)
        )

    def forward(self, inputs):
        return self.net(inputs)


def test_the_teachers_pass_leaves_no_trace():
    """At strength 0, statistics and random numbers are those of training without a teacher."""

    def train(*callbacks):
        torch.manual_seed(0)
        model = ClassifierModule(BatchNormNet(), num_classes=2)
        quiet_trainer(*callbacks, max_epochs=2).fit(model, loader(0))
        return dict(model.state_dict()), torch.get_rng_state()

    (plain, random), (distilled, random_too) = train(), train(LearningWithoutForgetting(0.0))
    assert_same(plain, distilled, rtol=0, atol=0)
    assert torch.equal(random, random_too)


def test_the_teacher_is_in_evaluation_mode_with_its_own_statistics():
    model = ClassifierModule(BatchNormNet(), num_classes=2)
    callback = LearningWithoutForgetting(1.0)
    quiet_trainer(callback, max_epochs=2).fit(model, loader(0))
    then = BatchNormNet()
    then.load_state_dict(
        {name.removeprefix("model."): value for name, value in callback.teacher.items()},
        strict=False,
    )
    inputs, weights = torch.randn(4, 8), callback._teacher_weights(model, model)
    model.eval()
    now = torch.func.functional_call(model, weights, inputs)
    torch.testing.assert_close(now, then.eval()(inputs))
    assert not torch.equal(model(inputs), now)


def causal_lm(model_type="llama"):
    sizes = {
        "llama": {"intermediate_size": 16, "num_attention_heads": 2, "hidden_size": 8},
        "gpt2": {
            "n_embd": 8,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    }[model_type]
    config = {"model_type": model_type, "vocab_size": 16, "num_hidden_layers": 1, **sizes}
    return CausalLMModule(config)


def divergence_of(callback, model, batch):
    """What is added to the loss of one batch, after the student has moved off."""

    added = []
    original = callback._divergence
    callback._divergence = lambda *args: added.append(original(*args)) or added[-1]

    class Off(type(model)):
        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(3)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter += 0.2 * torch.randn_like(parameter)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    model.__class__ = Off
    quiet_trainer(callback).fit(model, DataLoader([batch], batch_size=None))
    return added[0].item()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_only_tokens_that_are_predicted_and_no_padding_count(model_type):
    ids = torch.randint(16, (2, 6))
    labels, attention = ids.clone(), torch.ones_like(ids)
    labels[0, :3] = -100
    labels[1, 4:] = -100
    attention[1, 4:] = 0
    batch = {"input_ids": ids, "labels": labels, "attention_mask": attention}
    model, callback = causal_lm(model_type), LearningWithoutForgetting(1.0)
    added = divergence_of(callback, model, batch)
    inputs = {"input_ids": ids, "attention_mask": attention}
    model.eval()
    student = model(**inputs).logits
    weights = callback._teacher_weights(model, model)
    teacher = torch.func.functional_call(model, weights, (), inputs).logits
    # token i's output counts if token i + 1 is predicted
    counted = [(0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]
    rows = tuple(torch.tensor(counted).T)
    assert added == pytest.approx(by_hand(student[rows], teacher[rows], 2.0), rel=1e-3)


def test_a_batch_where_nothing_counts_adds_nothing():
    ids = torch.randint(16, (2, 6))
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    assert divergence_of(LearningWithoutForgetting(1.0), causal_lm(), batch) == 0


def test_a_classifier_by_hand():
    batch = (torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))
    model = ClassifierModule(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), num_classes=2)
    callback = LearningWithoutForgetting(1.0)
    added = divergence_of(callback, model, batch)
    teacher = torch.func.functional_call(model, dict(callback.teacher), batch[0])
    assert added == pytest.approx(by_hand(model(batch[0]), teacher, 2.0), rel=1e-4)


class Regression(Plain):
    """Puts out ``outputs`` numbers a sample, and fits them to whatever the batch asks for."""

    def __init__(self, outputs=3, squeeze=False):
        super().__init__(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, outputs)))
        self.squeeze = squeeze

    def forward(self, inputs):
        return self.net(inputs).squeeze(-1) if self.squeeze else self.net(inputs)

    def training_step(self, batch, batch_idx):
        return functional.mse_loss(self(batch[0]), batch[1].float())


def of_teacher(callback, model, inputs):
    return torch.func.functional_call(model, dict(callback.teacher), inputs)


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_regression_by_hand(squeeze):
    model, callback = Regression(1 if squeeze else 3, squeeze), LearningWithoutForgetting(1.0)
    batch = (torch.randn(4, 8), torch.randn(4) if squeeze else torch.randn(4, 3))
    added = divergence_of(callback, model, batch)
    difference = model(batch[0]) - of_teacher(callback, model, batch[0])
    assert added == pytest.approx(difference.square().sum().item() / 2 / 4, rel=1e-4)


@pytest.mark.parametrize("predictions", ["auto", "binary", Bernoulli()])
def test_several_labels_a_sample_by_hand(predictions):
    class ManyLabels(Regression):
        def training_step(self, batch, batch_idx):
            return functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    model, callback = ManyLabels(), LearningWithoutForgetting(1.0, 3.0, predictions=predictions)
    batch = (torch.randn(4, 8), torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]))
    added = divergence_of(callback, model, batch)
    old, new = of_teacher(callback, model, batch[0]) / 3, model(batch[0]) / 3
    divergence = kl_divergence(*(distributions.Bernoulli(logits=each) for each in (old, new)))
    assert added == pytest.approx(9 * divergence.sum().item() / 4, rel=1e-3)


def test_an_autoencoder_has_its_inputs_as_targets():
    class Autoencoder(Regression):
        def training_step(self, batch, batch_idx):
            return functional.mse_loss(self(batch[0]), batch[0])

    model, callback = Autoencoder(8), LearningWithoutForgetting(1.0)
    batch = (torch.randn(4, 8),)
    added = divergence_of(callback, model, batch)
    difference = model(batch[0]) - of_teacher(callback, model, batch[0])
    assert added == pytest.approx(difference.square().sum().item() / 2 / 4, rel=1e-4)


def test_inputs_of_a_call_by_name_and_labels_behind_them_both_count():
    class ByName(Regression):
        def forward(self, x, attention_mask):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return self(x=batch[0], attention_mask=batch[2]).square().mean()

    inputs, mask = torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = (inputs, torch.tensor([[0, -100, 1], [2, 1, -100]]), mask)
    model, callback = ByName(), LearningWithoutForgetting(1.0)
    added = divergence_of(callback, model, batch)
    given = {"x": inputs[:, 0], "attention_mask": mask}
    teacher = torch.func.functional_call(model, dict(callback.teacher), (), given)
    assert added == pytest.approx(by_hand(model(**given), teacher, 2.0), rel=1e-4)


def test_what_is_set_is_distilled_where_the_batch_tells_something_else():
    one_hot = (torch.randn(4, 8), torch.eye(4, 3))
    callback = LearningWithoutForgetting(1.0, predictions="classes")
    model = Regression()
    added = divergence_of(callback, model, one_hot)
    teacher = of_teacher(callback, model, one_hot[0])
    assert added == pytest.approx(by_hand(model(one_hot[0]), teacher, 2.0), rel=1e-4)


def test_what_the_batch_tells_is_logged_once(caplog):
    with caplog.at_level("INFO"):
        quiet_trainer(LearningWithoutForgetting()).fit(Plain(), loader(0))
    told = [r.message for r in caplog.records if "takes what the model predicts" in r.message]
    assert len(told) == 1
    assert "for 'classes', as the training loss tells" in told[0]
    caplog.clear()
    with caplog.at_level("INFO"):
        quiet_trainer(LearningWithoutForgetting(predictions="classes")).fit(Plain(), loader(0))
    assert "takes what" not in caplog.text


class Silent(Regression):
    """Its batches do not show what its outputs are compared with."""

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()


def test_what_nothing_tells_is_taken_for_classes_and_logged(caplog):
    batch = (torch.randn(4, 8), ["a", "b", "c", "d"])
    with caplog.at_level("INFO"):
        model, callback = Silent(), LearningWithoutForgetting(1.0)
        added = divergence_of(callback, model, batch)
    teacher = of_teacher(callback, model, batch[0])
    assert added == pytest.approx(by_hand(model(batch[0]), teacher, 2.0), rel=1e-4)
    assert "for 'classes', as nothing in the batch tells more" in caplog.text


def test_one_number_a_sample_that_nothing_tells_is_asked_for():
    with pytest.raises(MisconfigurationException, match=r"outputs of shape \(4, 1\).*predictions="):
        divergence_of(LearningWithoutForgetting(), Silent(1), (torch.randn(4, 8), ["text"] * 4))


def test_samples_without_a_label_do_not_count():
    class Labelled(Plain):
        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self.net(batch[0]), batch[1], ignore_index=-100)

    batch = (torch.randn(4, 8), torch.tensor([0, -100, 1, -100]))
    model, callback = Labelled(), LearningWithoutForgetting(1.0)
    added = divergence_of(callback, model, batch)
    weights = callback._teacher_weights(model, model.net)
    teacher = torch.func.functional_call(model.net, weights, batch[0])
    assert added == pytest.approx(by_hand(model.net(batch[0])[::2], teacher[::2], 2.0), rel=1e-4)


def test_what_is_set_and_contradicted_stops_the_fit():
    with pytest.raises(MisconfigurationException, match=r"set to 'values'.*mean 'classes'"):
        quiet_trainer(LearningWithoutForgetting(predictions="values")).fit(Plain(), loader(0))


class TwoParts(LightningModule):
    """No forward, and two children: which of them puts out logits cannot be known."""

    def __init__(self):
        super().__init__()
        self.body, self.net = nn.Linear(8, 2), nn.Linear(8, 2)

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]) + 0 * self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_logits_that_cannot_be_found_are_asked_for():
    with pytest.raises(
        MisconfigurationException, match=r"no logits in what TwoParts.*logits=.*mod"
    ):
        quiet_trainer(LearningWithoutForgetting()).fit(TwoParts(), loader(0))
    quiet_trainer(LearningWithoutForgetting(module="net")).fit(TwoParts(), loader(0))
    with pytest.raises(
        MisconfigurationException, match="module='nett' must be a submodule of TwoPar"
    ):
        quiet_trainer(LearningWithoutForgetting(module="nett")).fit(TwoParts(), loader(0))


class Wrapped(Plain):
    def forward(self, inputs):
        return {"scores": self.net(inputs)}

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self(batch[0])["scores"], batch[1])


def test_logits_can_be_picked_from_an_output_of_any_kind():
    start = Wrapped()
    callback = LearningWithoutForgetting(1e3, logits=lambda output: output["scores"])
    model = Wrapped()
    model.load_state_dict(start.state_dict())
    quiet_trainer(callback).fit(model, loader(0))
    free = Wrapped()
    free.load_state_dict(start.state_dict())
    quiet_trainer().fit(free, loader(0))
    inputs = torch.randn(64, 8)
    kept, lost = (
        (each(inputs)["scores"] - start(inputs)["scores"]).norm() for each in (model, free)
    )
    assert kept < lost


def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, resumed, callback = trained_with_a_break(
        lambda: LearningWithoutForgetting(5.0, task_epochs=1), tmp_path / "mid.ckpt"
    )
    assert_same(whole, resumed, rtol=0, atol=0)
    assert callback.teacher is not None


def test_hooks_are_gone_after_the_fit():
    model = Plain()
    quiet_trainer(LearningWithoutForgetting()).fit(model, loader(0))
    assert not any(child._forward_hooks for child in model.modules())


def test_validation_and_probes_are_not_listened_to():
    callback = LearningWithoutForgetting()
    trainer = quiet_trainer(callback, val_check_interval=1)
    trainer.fit(Plain(), loader(0), loader(0, shuffle=False))
    assert callback._calls == {}


@pytest.mark.parametrize("first", [True, False])
def test_what_recall_measures_is_not_distilled(first):
    """Both may be given: at strength 0 training is that of RECALL alone."""

    def train(*others):
        torch.manual_seed(0)
        model, recall = Plain(), RecallCallback(every=2)
        for task in range(2):
            callbacks = [*others, recall] if first else [recall, *others]
            quiet_trainer(*callbacks, max_epochs=2).fit(model, loader(task))
        return weights_of(model)

    assert_same(train(), train(LearningWithoutForgetting(0.0)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "bad",
    [
        {"strength": -1},
        {"strength": float("nan")},
        {"temperature": 0},
        {"predictions": "labels"},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(MisconfigurationException, match=f"{next(iter(bad))}="):
        LearningWithoutForgetting(**bad)
