import pytest
import torch
from torch import nn

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.beginnings import Beginning
from recall_lightning.measuring.generation import nats_of, write_sequences
from tests.support.tiny_transformers import tiny_llama

RANDOM = [Beginning(None)]


def test_a_causal_language_model_is_found_inside_and_no_other_model():
    model = tiny_llama()
    assert find_generator(nn.ModuleDict({"inner": model})) is model
    assert find_generator(model.model) is None  # without a head
    with pytest.raises(ValueError, match="Linear must hold a causal language model"):
        write_sequences(nn.Linear(2, 2), 2, 4, seed=0)


def test_a_seed_gives_the_same_sequences_again_and_another_seed_others():
    model = tiny_llama(eos_token_id=None)
    one, again, other = (write_sequences(model, 6, 5, seed) for seed in (0, 0, 1))
    assert one.ids.shape == (6, 5)
    assert torch.equal(one.ids, again.ids)
    assert not torch.equal(one.ids, other.ids)
    assert one.mask.all()


def test_the_model_and_the_random_state_are_as_before():
    model = tiny_llama().train()
    before = torch.get_rng_state()
    model.generation_config.repetition_penalty = 1.5
    write_sequences(model, 2, 4, seed=0)
    assert model.training
    assert model.generation_config.repetition_penalty == 1.5
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_beginnings_take_turns_and_stand_where_sequences_begin():
    begun = [Beginning((1,)), Beginning((4, 5, 6)), Beginning(None)]
    written = write_sequences(tiny_llama(), 70, 8, 0, begun)  # more than are written at once
    assert written.ids[::3, 0].eq(1).all()
    assert written.ids[1::3, :3].eq(torch.tensor([4, 5, 6])).all()
    assert len(set(written.ids[2::3, 0].tolist())) > 5
    given = torch.tensor([1, 3, 1])[torch.arange(70) % 3]
    assert torch.equal((~written.own).sum(1), given)
    assert (written.entropy[~written.own] == 0).all()


def test_tokens_are_drawn_as_the_model_predicts_them_whatever_its_config_adds():
    model = tiny_llama(vocab_size=4, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        model.generation_config.update(repetition_penalty=5.0, top_k=1, temperature=0.1)
        predicted = model(torch.tensor([[2]])).logits[0, -1].softmax(-1)
    second = write_sequences(model, 4000, 2, 0, [Beginning((2,))]).ids[:, 1]
    torch.testing.assert_close(
        torch.bincount(second, minlength=4) / 4000, predicted, atol=0.03, rtol=0.0
    )


def test_entropy_is_that_of_what_is_predicted_and_nats_are_the_entropy_in_the_mean():
    model = tiny_llama(vocab_size=8, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
        written = write_sequences(model, 300, 6, 0)
        predicted = torch.distributions.Categorical(logits=model(written.ids).logits)
    torch.testing.assert_close(
        written.entropy[:, 1:], predicted.entropy()[:, :-1], rtol=1e-3, atol=1e-4
    )
    nats = nats_of(model, written, sequences=300)
    torch.testing.assert_close(
        nats[:, 1:], -predicted.log_prob(written.ids.roll(-1, 1))[:, :-1], rtol=1e-3, atol=1e-4
    )
    assert float(nats.mean()) == pytest.approx(float(written.entropy.mean()), abs=0.05)
    assert float(written.entropy[:, 1:].mean()) < 1.9  # it is no uniform one


def test_what_follows_a_sequences_end_is_masked():
    written = write_sequences(tiny_llama(eos_token_id=[3, 4]), 32, 12, 0, RANDOM)
    ended = 0
    for ids, mask in zip(written.ids.tolist(), written.mask.tolist(), strict=True):
        ends = [at for at, token in enumerate(ids) if token in (3, 4) and at > 0]
        end = ends[0] if ends else len(ids)
        assert mask == [1] * min(end + 1, len(ids)) + [0] * (len(ids) - end - 1)
        ended += end < len(ids)
    assert ended > 4


def test_a_users_turn_that_the_model_ends_goes_on_with_the_answer_and_ends_with_it():
    chat = Beginning((1, 5), turn=(3, 7, 8))
    written = write_sequences(tiny_llama(eos_token_id=3), 32, 30, 0, [chat])
    answered = 0
    for ids, mask in zip(written.ids.tolist(), written.mask.tolist(), strict=True):
        assert ids[:2] == [1, 5]
        ends = [at for at, token in enumerate(ids) if token == 3]
        if len(ends) and ends[0] < 28:
            assert ids[ends[0] + 1 : ends[0] + 3] == [7, 8]
            answered += 1
        last = ends[1] if len(ends) > 1 else len(ids) - 1
        assert sum(mask) == last + 1
    assert answered > 10


def test_sequences_are_no_longer_than_the_model_has_positions():
    model = tiny_llama(max_position_embeddings=6, eos_token_id=None)
    assert write_sequences(model, 2, 50, seed=0).ids.shape == (2, 6)


def test_batches_are_of_so_many_sequences():
    written = write_sequences(tiny_llama(), 5, 4, seed=0)
    assert [len(batch["input_ids"]) for batch in written.batches(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([b["attention_mask"] for b in written.batches(2)]), written.mask)
