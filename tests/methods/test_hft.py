import pytest
import torch
import transformers
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.methods.hft import HalfFineTuning, draw_frozen
from tests.support.baseline_tools import trained_with_a_break, weights_of
from tests.support.training import Plain, loader, quiet_trainer


class Decaying(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def test_the_frozen_half_keeps_every_bit_and_the_other_half_moves():
    callback, model = HalfFineTuning(), Decaying()
    before = weights_of(model)
    quiet_trainer(callback).fit(model, loader(0))
    moved = {n for n, w in weights_of(model).items() if not torch.equal(w, before[n])}
    assert moved == set(before) - set(callback.frozen)
    assert 0 < len(callback.frozen) < len(before)


class Boundaries(Decaying):
    """Notes its weights around every epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = [weights_of(self)]

    def on_train_epoch_end(self):
        self.epochs.append(weights_of(self))


@pytest.mark.parametrize("kwargs", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_frozen_under_weight_decay_and_the_momentum_of_earlier_tasks(kwargs):
    draws = []

    class Noted(HalfFineTuning):
        def on_task_start(self, trainer, pl_module, task):
            super().on_task_start(trainer, pl_module, task)
            draws.append(set(self.frozen))

    model = Boundaries()
    quiet_trainer(Noted(task_epochs=1), max_epochs=4, **kwargs).fit(model, loader(0))
    for frozen, before, after in zip(draws, model.epochs, model.epochs[1:], strict=False):
        assert {n for n in before if torch.equal(before[n], after[n])} == frozen
    assert len(draws) == 4
    assert len(set(map(frozenset, draws))) > 1


def test_what_a_model_from_random_weights_learns_first_is_learned_with_all_of_it():
    callback, model = HalfFineTuning(from_first_task=False), Plain()
    quiet_trainer(callback).fit(model, loader(0))
    assert callback.frozen == []
    quiet_trainer(callback).fit(model, loader(1))
    assert callback.frozen


def llama(layers=4):
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=2,
    )  # fmt: skip
    return dict(transformers.LlamaForCausalLM(config).named_parameters())


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_attention_the_feed_forward_and_the_norms_of_every_layer_is_drawn(seed):
    frozen = draw_frozen(llama(), 0.5, seed)
    counts = [
        tuple(sum(f"layers.{i}.{kind}" in n for n in frozen) for kind in ("self_attn", "mlp"))
        for i in range(4)
    ]
    assert [attention for attention, _ in counts] == [2, 2, 2, 2]
    assert sorted(feed_forward for _, feed_forward in counts) == [1, 1, 2, 2]
    assert all(sum(f"layers.{i}." in n and "norm" in n for n in frozen) == 1 for i in range(4))


def test_every_weight_is_frozen_about_as_often_as_the_fraction_says():
    weights, draws = llama(2), 400
    counts = dict.fromkeys(weights, 0)
    for seed in range(draws):
        for name in draw_frozen(weights, 0.3, seed):
            counts[name] += 1
    assert all(abs(count / draws - 0.3) < 0.1 for count in counts.values())


def test_draws_follow_seed_and_task():
    weights = llama()
    assert draw_frozen(weights, 0.5, 1) == draw_frozen(weights, 0.5, 1)
    assert draw_frozen(weights, 0.5, 1) != draw_frozen(weights, 0.5, 2)


def test_a_resume_in_the_midst_of_a_task_goes_on_with_its_half(tmp_path):
    whole, resumed, callback = trained_with_a_break(
        lambda: HalfFineTuning(task_epochs=1), tmp_path / "mid.ckpt", model=Decaying
    )
    assert callback.frozen
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_optimizer_that_moves_all_weights_at_once_is_refused():
    class Newton(Plain):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match="under LBFGS"):
        quiet_trainer(HalfFineTuning()).fit(Newton(), loader(0))


@pytest.mark.parametrize("fraction", [0, 1, -0.5])
def test_bad_fractions_are_refused(fraction):
    with pytest.raises(MisconfigurationException, match="fraction="):
        HalfFineTuning(fraction)
