import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data.sampling import mix_seed
from recall_lightning.methods import SelfReplay
from recall_lightning.methods.self_replay import drawn, joined
from tests.support.baseline_tools import StopAfter, assert_same, weights_of
from tests.support.tiny_streams import counting, loss_of, tiny_llama_module
from tests.support.training import Plain, loader, quiet_trainer

BOTH = pytest.mark.parametrize("loss", ["divergence", "cross_entropy"])


class Steps(Callback):
    """Keeps each step's weights and gradients, and the batches that went into it."""

    def __init__(self):
        self.batches, self.steps = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.fit_loop.total_batch_idx, batch))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}
        self.steps.append((copy.deepcopy(pl_module.model), gradients, self.batches))
        self.batches = []


def by_hand(model, teacher, loss, written):
    """KL(p ‖ q) or −ln q, a mean over written tokens, one sequence and one token at a time."""
    parts = []
    for ids, mask in zip(written["input_ids"], written["attention_mask"], strict=True):
        length = int(mask.sum())
        q = model(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
        p = teacher(input_ids=ids[None, :length]).logits[0].softmax(-1).detach()
        for at in range(length - 1):
            kl = (p[at] * (p[at].log() - q[at])).sum()
            parts.append(kl if loss == "divergence" else -q[at, ids[at + 1]])
    return torch.stack(parts).mean()


@BOTH
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_steps_gradient_is_that_of_the_task_and_of_what_was_written(loss, accumulate):
    module, steps = tiny_llama_module(1e-2, 1, {}), Steps()
    teacher = copy.deepcopy(module.model).eval()
    callback = SelfReplay(0.7, sequences=12, batch_size=3, loss=loss)
    trainer = quiet_trainer(callback, steps, accumulate_grad_batches=accumulate, max_epochs=2)
    trainer.fit(module, counting(3, batch_size=4))
    for model, gradients, batches in steps.steps:
        model.zero_grad()
        for index, batch in batches:
            own = drawn(callback.written, 3, mix_seed(0, index))
            assert own["input_ids"].shape == (3, 8)
            total = model(**batch).loss + 0.7 * by_hand(model, teacher, loss, own)
            (total / accumulate).backward()
        expected = {f"model.{n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert_same(gradients, expected, atol=1e-5, rtol=1e-3)


@BOTH
def test_what_the_model_knew_and_learned_is_kept(loss):
    def train(*callbacks):
        module = tiny_llama_module(2e-2, 1, {})
        for step in (3, 5):
            quiet_trainer(*callbacks, max_epochs=15).fit(module, counting(step))
        return loss_of(module, 1), loss_of(module, 3)

    plain, replayed = train(), train(SelfReplay(sequences=32, loss=loss))
    assert replayed[0] < 0.3 * plain[0]
    assert replayed[1] < 0.5 * plain[1]


def test_the_model_writes_what_it_knows_before_each_task():
    module, callback = tiny_llama_module(2e-2, 1, {}), SelfReplay(sequences=20)
    quiet_trainer(callback).fit(module, counting(3))
    ids = callback.written["input_ids"]
    assert ids.shape == (20, 8)
    assert ((ids.diff() - 1) % 16 == 0).float().mean() > 0.9
    quiet_trainer(callback).fit(module, counting(5, length=6))
    assert callback.written["input_ids"].shape == (40, 8)
    assert torch.equal(callback.written["input_ids"][:20], ids)
    assert callback.written["attention_mask"][20:, 6:].sum() == 0


def test_a_model_from_random_weights_writes_nothing_in_its_first_task():
    module, callback = tiny_llama_module(), SelfReplay(sequences=4, from_first_task=False)
    quiet_trainer(callback).fit(module, counting(3))
    assert callback.written is None
    assert callback.teacher is None
    quiet_trainer(callback).fit(module, counting(5))
    assert len(callback.written["input_ids"]) == 4


@BOTH
def test_a_resume_in_the_midst_of_a_task_goes_on_as_if_nothing_had_happened(loss, tmp_path):
    def fit(module, *more, **kwargs):
        callback = SelfReplay(sequences=8, loss=loss, task_epochs=1)
        trainer = quiet_trainer(callback, *more, max_epochs=2)
        # all batches alike: a dataloader without a state starts from its first after a resume
        trainer.fit(module, counting(3, rows=128, batch_size=16), **kwargs)
        return weights_of(module), callback

    path = tmp_path / "mid.ckpt"
    whole, _ = fit(tiny_llama_module(1e-2, 1, {}), StopAfter(8 + 3, path))
    again, callback = fit(tiny_llama_module(1e-2, 1, {}), ckpt_path=path, weights_only=True)
    assert callback.written["input_ids"].shape == (16, 8)
    assert_same(whole, again, rtol=0, atol=0)


def test_it_works_under_a_trainers_defaults(tmp_path):
    trainer = Trainer(callbacks=[SelfReplay(sequences=4)], max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(tiny_llama_module(1e-2, 1, {}), counting(3))
    state = torch.load(next(tmp_path.rglob("*.ckpt")))["callbacks"]["SelfReplay"]
    assert state["written"]["input_ids"].shape == (4, 8)


def test_padding_is_no_token():
    short = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}
    longer = {"input_ids": torch.ones(1, 5).long(), "attention_mask": torch.ones(1, 5).long()}
    together = joined([short, longer])
    assert together["attention_mask"].sum(1).tolist() == [3, 3, 5]
    lengths = {drawn(together, 1, seed)["input_ids"].shape[1] for seed in range(20)}
    assert lengths == {3, 5}


def test_other_models_are_refused():
    with pytest.raises(MisconfigurationException, match=r"causal language model .* Plain holds no"):
        quiet_trainer(SelfReplay()).fit(Plain(), loader(0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strength": -1}, "strength=-1 must be a number from 0 on"),
        ({"sequences": 0}, "sequences=0 must be an integer"),
        ({"batch_size": 0}, "batch_size=0 must be an integer"),
        ({"loss": "kl"}, "loss='kl' is unknown"),
    ],
)
def test_bad_arguments_are_refused(given, said):
    with pytest.raises(MisconfigurationException, match=said):
        SelfReplay(**given)
