import pytest
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.merging.folders.layers import blocks_from_names, blocks_named
from tests.support.tiny_models import llama


def shapes_of(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 16}
    return T5ForConditionalGeneration(T5Config(num_layers=2, **sizes))


def bert():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    return BertModel(BertConfig(num_hidden_layers=3, vocab_size=16, **sizes))


@pytest.mark.parametrize("build", [lambda: llama(0), lambda: llama(0, tied=True), t5, bert])
def test_blocks_by_name_are_those_by_structure(build):
    model = build()
    by_name, by_structure = blocks_from_names(shapes_of(model)), find_blocks(model)
    assert [b.name for b in by_name] == [b.name for b in by_structure]
    for one, other in zip(by_name, by_structure, strict=True):
        assert set(one.weights) == set(other.weights), one.name
        assert one.parameters == other.parameters
        assert one.share == pytest.approx(other.share)


def test_ten_layers_are_in_order_of_their_numbers():
    blocks = blocks_from_names({f"h.{i}.w": (2,) for i in reversed(range(12))})
    assert [block.name for block in blocks] == [f"h.{i}" for i in range(12)]


def test_experts_are_inside_their_layer():
    names = [f"layers.{i}.experts.{j}.w" for i in range(2) for j in range(3)]
    blocks = blocks_from_names(dict.fromkeys(names, (4,)))
    assert [(block.name, len(block.weights)) for block in blocks] == [
        ("layers.0", 3),
        ("layers.1", 3),
    ]


def test_two_layers_of_a_head_are_no_blocks():
    shapes = {"layers.0.w": (99,), "layers.1.w": (99,), "head.0.w": (3,), "head.1.w": (3,)}
    blocks = blocks_from_names(shapes)
    assert [block.name for block in blocks] == ["layers.0", "layers.1"]
    assert set(blocks[1].weights) == {"layers.1.w", "head.0.w", "head.1.w"}


def test_without_numbers_every_module_is_a_block():
    blocks = blocks_from_names({"first.weight": (2, 2), "first.bias": (2,), "second": (2,)})
    assert [(b.name, b.parameters) for b in blocks] == [("first", 6), ("second", 2)]


def test_every_tensor_has_one_block():
    shapes = shapes_of(t5())
    for blocks in (blocks_from_names(shapes), blocks_named(["decoder.block.1"], shapes)):
        assert sorted(n for block in blocks for n in block.weights) == sorted(shapes)
        assert sum(block.share for block in blocks) == pytest.approx(1)
