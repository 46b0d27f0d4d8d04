"""A step's loss is the mean over its tokens, however the step is cut into batches."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from recall_lightning import RecallCallback, TaskStream
from recall_lightning.data.instructions.collating import collate, collate_packed
from recall_lightning.data.instructions.encoding import Encoded
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.models import CausalLMModule, ClassifierModule
from tests.support.processes import run_ranks
from tests.support.training import quiet_trainer

TINY = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def rows(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(tuple(torch.randint(4, 32, (n,), generator=generator).tolist()), 3) for n in lengths
    ]


def language_model(optimizer=torch.optim.SGD, lr=1.0, **config):
    torch.manual_seed(0)
    return CausalLMModule(TINY | config, lambda params: optimizer(params, lr=lr))


class Losses(Callback):
    """Keeps the loss that is logged for each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        if not trainer.fit_loop._should_accumulate():
            self.seen.append(trainer.callback_metrics["train/loss"].item())


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gathered(examples):
    return collate(examples, 0)


def trained(model, examples, size, steps, *callbacks, gather=gathered, **kwargs):
    """Train a copy; return its weights."""
    model = copy.deepcopy(model)
    loader = DataLoader(examples, batch_size=size, collate_fn=gather)
    trainer = quiet_trainer(*callbacks, accumulate_grad_batches=steps, **kwargs)
    trainer.fit(model, loader)
    return weights_of(model)


EXAMPLES = rows(4, 24, 9, 5, 17, 4, 30)  # answers of 1 to 27 tokens; the last step has 3 of 4


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_accumulated_batches_step_as_one_batch_of_all_their_rows(clip, precision):
    options = {"gradient_clip_val": clip, "precision": precision, "max_epochs": 2}
    one, cut = Losses(), Losses()
    model = language_model(lr=0.1)
    expected = trained(model, EXAMPLES, 4, 1, one, **options)
    found = trained(model, EXAMPLES, 1, 4, cut, **options)
    exact = precision == "32-true"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if exact else 3e-3)
    assert cut.seen == pytest.approx(one.seen, rel=1e-5 if exact else 1e-2)


def test_packed_rows_count_by_their_tokens_too():
    groups = [EXAMPLES[:1], EXAMPLES[1:4], EXAMPLES[4:6], EXAMPLES[6:]]
    gather = {"gather": lambda found: collate_packed(found, 0)}
    model = language_model()
    expected = trained(model, groups, 4, 1, **gather)
    torch.testing.assert_close(trained(model, groups, 1, 4, **gather), expected, rtol=0, atol=1e-6)


def test_the_loss_of_a_step_is_its_nats_over_its_tokens():
    model, losses = language_model(lr=0.0), Losses()
    trained(model, EXAMPLES, 2, 2, losses)
    for begin, seen in zip((0, 4), losses.seen, strict=True):
        batch = collate(EXAMPLES[begin : begin + 4], 0)
        assert seen == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_a_step_of_one_batch_is_that_of_transformers_own_loss():
    model = language_model(lr=0.1)
    found = trained(model, EXAMPLES, 3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for begin in (0, 3, 6):
        optimizer.zero_grad()
        model(**collate(EXAMPLES[begin : begin + 3], 0)).loss.backward()
        optimizer.step()
    assert torch.equal(found, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_a_mixture_of_experts_adds_its_balancing_loss():
    sizes = {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2}
    model = language_model(**sizes, output_router_logits=True, router_aux_loss_coef=0.5)
    batch = collate(EXAMPLES, 0)
    expected = model(**batch).loss
    torch.testing.assert_close(model.training_step(batch, 0), expected)
    assert model.model(**batch).aux_loss > 0


def test_a_batch_without_any_predicted_token_leaves_the_weights_finite():
    silent = Encoded((5, 6, 7), 3)
    model = language_model()
    assert torch.equal(trained(model, [silent], 1, 1), weights_of(model))
    both = trained(model, [silent, EXAMPLES[0], EXAMPLES[1], silent], 1, 4)
    torch.testing.assert_close(both, trained(model, EXAMPLES[:2], 2, 1), rtol=0, atol=1e-6)


class Saves(Callback):
    def __init__(self, folder, batches):
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 in self.batches:
            trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt")


def streamed(model, steps, *callbacks, checkpoint=None, examples=EXAMPLES):
    """Train a copy on a stream, which goes on in the middle of an epoch; return its weights."""
    model = copy.deepcopy(model)
    data = TaskStream.from_datasets([(examples, examples)], batch_size=1, collate_fn=gathered)
    trainer = quiet_trainer(
        *callbacks, accumulate_grad_batches=steps, reload_dataloaders_every_n_epochs=1
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return weights_of(model)


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 6])
def test_a_half_accumulated_step_goes_on_after_a_resume(batches, tmp_path):
    model = language_model(torch.optim.AdamW, lr=0.01)
    recall = partial(RecallCallback, every=2, merge_first_task=False)
    whole = streamed(model, 3, recall(), Saves(tmp_path, [batches]))
    checkpoint = tmp_path / f"{batches}.ckpt"
    assert torch.equal(streamed(model, 3, recall(), checkpoint=checkpoint), whole)


def test_a_half_accumulated_step_of_an_older_checkpoint_is_the_mean_of_its_batches(tmp_path):
    model, two = language_model(lr=0.1), EXAMPLES[:2]
    recall = partial(RecallCallback, every=1.0, merge_first_task=False)
    streamed(model, 2, recall(), Saves(tmp_path, [1]), examples=two)
    checkpoint = torch.load(tmp_path / "1.ckpt")
    del checkpoint["step_mean"]  # as of before there was one
    torch.save(checkpoint, tmp_path / "older.ckpt")
    found = streamed(model, 2, recall(), checkpoint=tmp_path / "older.ckpt", examples=two)
    (sum(model(**collate([one], 0)).loss for one in two) / 2).backward()
    stepped = [(p - 0.1 * p.grad).detach().flatten() for p in model.parameters()]
    torch.testing.assert_close(found, torch.cat(stepped), rtol=0, atol=1e-6)


def test_where_gradients_do_not_come_back_the_rest_of_a_step_is_its_mean(tmp_path):
    """Plain Lightning forgets gradients that are half accumulated."""

    class Batches(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch)

    seen: list = []
    model = language_model(lr=0.1)
    streamed(model, 7, Saves(tmp_path, [3]))
    found = streamed(model, 7, Batches(), checkpoint=tmp_path / "3.ckpt")
    assert len(seen) == 4
    nats, tokens = 0.0, 0
    for batch in seen:
        count = int((batch["labels"] != -100).sum())
        nats, tokens = nats + model(**batch).loss * count, tokens + count
    (nats / tokens).backward()
    stepped = [(p - 0.1 * p.grad).detach().flatten() for p in model.parameters()]
    torch.testing.assert_close(found, torch.cat(stepped), rtol=0, atol=1e-6)


def test_distillation_is_the_mean_over_a_steps_tokens_too():
    class MovedAway(Callback):  # or student and teacher would agree in the only step
        def on_train_batch_start(self, trainer, module, *_):
            if module.model.lm_head.weight[0, 0] != 3:
                with torch.no_grad():
                    module.model.lm_head.weight.mul_(1.5)[0, 0] = 3

    model, steps = language_model(lr=0.1), []
    for size, accumulated in ((4, 1), (1, 4)):
        lwf = LearningWithoutForgetting(strength=3.0)
        steps.append(trained(model, EXAMPLES[:4], size, accumulated, lwf, MovedAway()))
    without = trained(model, EXAMPLES[:4], 4, 1, MovedAway())
    assert (steps[0] - without).abs().max() > 1e-3
    torch.testing.assert_close(*steps, rtol=0, atol=1e-6)


def test_a_classifiers_step_is_the_mean_over_its_samples():
    torch.manual_seed(0)
    data = [(torch.randn(4), torch.tensor(n % 3)) for n in range(7)]
    model = ClassifierModule(torch.nn.Linear(4, 3), 3, lambda p: torch.optim.SGD(p, lr=1.0))
    gather = {"gather": torch.utils.data.default_collate}
    expected = trained(model, data, 7, 1, **gather)
    torch.testing.assert_close(trained(model, data, 3, 3, **gather), expected, rtol=0, atol=1e-6)


def run_on(processes, size, steps):
    """Train on a part of the examples' rows a process; return weights and losses."""
    model, losses = language_model(lr=0.1), Losses()
    loader = DataLoader(EXAMPLES[:4], batch_size=size, collate_fn=gathered)
    options = {"max_epochs": 2, "accumulate_grad_batches": steps, "gradient_clip_val": 0.1}
    strategy = "ddp" if processes > 1 else "auto"
    trainer = quiet_trainer(losses, devices=processes, strategy=strategy, **options)
    trainer.fit(model, loader)
    return trainer, (weights_of(model), losses.seen)


@pytest.mark.processes
def test_processes_step_as_one_with_all_their_rows(tmp_path):
    run_ranks(__name__, folder=tmp_path)
    _, (weights, losses) = run_on(1, 4, 1)
    for found in torch.load(tmp_path / "out.pt"):
        torch.testing.assert_close(found[0], weights, rtol=0, atol=1e-6)
        assert found[1] == pytest.approx(losses, rel=1e-5)


if __name__ == "__main__":
    runs = [run_on(2, size, steps) for size, steps in ((1, 2), (2, 1))]
    if runs[0][0].is_global_zero:
        torch.save([found for _, found in runs], "out.pt")
