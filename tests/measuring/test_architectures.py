"""Blocks, weights outside them, padding and a merge, over the architectures that people train."""

import math

import pytest
import torch
import transformers

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.similarity import median_squared_sigma, rbf
from recall_lightning.merging.blockwise import merge_snapshots_, weights_of_names
from recall_lightning.merging.coefficients.softmax import softmax_coefficients
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot

PAD = 1
SPECIAL = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
DECODER = SIZES | {"intermediate_size": 16, "num_key_value_heads": 2} | SPECIAL
ENCODER = SIZES | {"intermediate_size": 16, "max_position_embeddings": 32} | SPECIAL
BOTH = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
BOTH |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BOTH |= {"vocab_size": 20, "decoder_start_token_id": 2, "forced_eos_token_id": 3} | SPECIAL
LM, MASKED, PAIRS = "CausalLM", "MaskedLM", "Seq2SeqLM"
ARCHITECTURES = {
    "llama": (LM, DECODER),
    "mistral": (LM, DECODER),
    "qwen2": (LM, DECODER),
    "qwen3": (LM, DECODER | {"head_dim": 4}),
    "gemma2": (LM, DECODER | {"head_dim": 4}),
    "phi3": (LM, DECODER),
    "gpt2": (LM, {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20} | SPECIAL),
    "gpt_neox": (LM, SIZES | {"intermediate_size": 16} | SPECIAL),
    "opt": (LM, SIZES | {"ffn_dim": 16, "word_embed_proj_dim": 8} | SPECIAL),
    "bert": (MASKED, ENCODER),
    "roberta": (MASKED, ENCODER),
    "t5": (PAIRS, {"d_model": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "d_kv": 4}
           | {"vocab_size": 20, "pad_token_id": PAD, "decoder_start_token_id": 2}),
    "bart": (PAIRS, BOTH),
    "vit": ("ImageClassification", {"hidden_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8, "patch_size": 4}),
    "whisper": ("SpeechSeq2Seq", BOTH | {"num_mel_bins": 4, "max_source_positions": 8}),
    "mixtral": (LM, DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": (LM, {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 20}
              | SPECIAL),
}  # fmt: skip
BLOCKS = {name: ["model.layers.0", "model.layers.1"] for name in ARCHITECTURES} | {
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "gpt_neox": ["gpt_neox.layers.0", "gpt_neox.layers.1"],
    "opt": ["model.decoder.layers.0", "model.decoder.layers.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "roberta": ["roberta.encoder.layer.0", "roberta.encoder.layer.1"],
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "bart": [f"model.{side}.layers.{i}" for side in ("encoder", "decoder") for i in range(2)],
    "vit": ["vit.layers.0", "vit.layers.1"],
    "whisper": [f"model.{side}.layers.{i}" for side in ("encoder", "decoder") for i in range(2)],
    "mamba": ["backbone.layers.0", "backbone.layers.1"],
}
TOKENS = [name for name, (head, _) in ARCHITECTURES.items() if head in (LM, MASKED)]
LEARNED_POSITIONS = ("gpt2", "bert")  # counted from the sequence's start unless they are given


def build(name, **changes):
    torch.manual_seed(0)
    head, fields = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(name, **fields | changes)
    return getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()


def batch(name, samples=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (samples, 5), generator=generator)
    head = ARCHITECTURES[name][0]
    if head == "ImageClassification":
        return {"pixel_values": torch.randn(samples, 3, 8, 8, generator=generator)}
    if head == "SpeechSeq2Seq":
        sound = torch.randn(samples, 4, 16, generator=generator)
        return {"input_features": sound, "decoder_input_ids": ids}
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return found | ({"decoder_input_ids": ids.flip(1)} if head == PAIRS else {})


def states(model, blocks, given):
    return hidden_states(model, blocks, [given])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_are_found_and_every_weight_belongs_to_one(name):
    model = build(name)
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == BLOCKS[name]
    assigned = [weight for block in blocks for weight in block.weights]
    assert sorted(assigned) == sorted(named_weights(model))
    for block in blocks:
        inside = {weight for weight in named_weights(model) if weight.startswith(f"{block.name}.")}
        assert inside <= set(block.weights)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_belong_to_a_first_block_and_final_norms_and_heads_to_a_last(name):
    blocks = find_blocks(build(name))
    stacks = [blocks[:2], blocks[2:] or blocks[:2]]
    firsts, lasts = ({weight for s in stacks for weight in s[end].weights} for end in (0, 1))
    outside = [w for b in blocks for w in b.weights if not w.startswith(f"{b.name}.")]
    assert outside
    for weight in outside:
        entering = any(part in weight for part in ("emb", "shared", "wte", "wpe", "conv"))
        assert weight in (firsts if entering else lasts), weight


@pytest.mark.parametrize("name", [n for n in TOKENS if n != "mamba"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_one_weight_and_an_untied_one_belongs_to_the_last_block(name, tied):
    model = build(name, tie_word_embeddings=tied)
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) is tied
    own = {name for name, weight in named_weights(model).items() if weight is head}
    assert len(own) == 1
    first, last = find_blocks(model)
    assert own <= set((first if tied else last).weights)


def test_experts_and_their_router_belong_to_their_block():
    for index, block in enumerate(find_blocks(build("mixtral"))):
        experts = [w for w in block.weights if "experts" in w or "gate.weight" in w]
        assert len(experts) >= 3
        assert all(weight.startswith(f"model.layers.{index}.") for weight in experts)


@pytest.mark.parametrize("name", TOKENS)
def test_padding_on_either_side_leaves_the_representations_as_they_are(name):
    model = build(name)
    blocks, plain = find_blocks(model), batch(name)
    expected = states(model, blocks, plain)
    for side in ("left", "right"):
        where = (3, 0) if side == "left" else (0, 3)
        padded = {"input_ids": torch.nn.functional.pad(plain["input_ids"], where, value=PAD)}
        padded["attention_mask"] = torch.nn.functional.pad(plain["attention_mask"], where)
        if name in LEARNED_POSITIONS:
            padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        for block, found in states(model, blocks, padded).items():
            torch.testing.assert_close(found, expected[block], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_merge_gives_every_block_its_own_coefficient(name):
    model = build(name)
    blocks, given = find_blocks(model), batch(name)
    snapshot, before = Snapshot.take(model), states(model, blocks, given)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            for weight in block.weights:
                named_weights(model)[weight].add_(
                    torch.randn_like(snapshot[weight]), alpha=0.003 * depth
                )
    moved, now = Snapshot.take(model), states(model, blocks, given)
    similarity = {b: [rbf(before[b], now[b], median_squared_sigma(before[b]))] for b in before}
    coefficients = {block: w for block, (w,) in softmax_coefficients(similarity).items()}
    assert len(set(coefficients.values())) == len(blocks)  # uniform ones would be linear merging
    weights = weights_of_names(coefficients, blocks, snapshot, [])
    merge_snapshots_(named_weights(model), [snapshot], [weights])
    for block in blocks:
        w = coefficients[block.name]
        assert 1 / (1 + math.e) <= w <= 0.5
        for weight in block.weights:
            torch.testing.assert_close(
                named_weights(model)[weight].detach(),
                w * snapshot[weight] + (1 - w) * moved[weight],
            )
