import pytest
import torch
import transformers
from torch import nn

from recall_lightning.measuring.generation import find_generator, generated_batches


def llama(**config):
    config = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8} | config
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def test_a_causal_language_model_is_found_inside_and_no_other_model():
    model = llama()
    assert find_generator(nn.ModuleDict({"inner": model})) is model
    assert find_generator(model.model) is None  # without a head
    with pytest.raises(ValueError, match="Linear holds no causal language model"):
        generated_batches(nn.Linear(2, 2), 1, 2, 4, seed=0)


def test_a_seed_gives_the_same_sequences_again_and_another_seed_others():
    model = llama(eos_token_id=None)
    one, again, other = (generated_batches(model, 2, 3, 5, seed) for seed in (0, 0, 1))
    assert [tuple(batch["input_ids"].shape) for batch in one] == [(3, 5), (3, 5)]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0]["input_ids"], other[0]["input_ids"])
    assert one[0]["attention_mask"].all()


def test_the_model_and_the_random_state_are_as_before():
    model = llama().train()
    before = torch.get_rng_state()
    generated_batches(model, 1, 2, 4, seed=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_follows_a_sequences_end_is_masked():
    model = llama(eos_token_id=3, pad_token_id=0)
    ended = 0
    for batch in generated_batches(model, 4, 8, 12, seed=0):
        for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"], strict=True):
            end = ids.index(3, 1) if 3 in ids[1:] else len(ids)
            assert mask.tolist() == [1] * min(end + 1, len(ids)) + [0] * (len(ids) - end - 1)
            ended += end < len(ids)
    assert ended > 4


def test_sequences_are_no_longer_than_the_model_has_positions():
    model = llama(max_position_embeddings=6, eos_token_id=None)
    assert generated_batches(model, 1, 2, 50, seed=0)[0]["input_ids"].shape == (2, 6)
