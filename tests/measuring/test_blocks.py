import pytest
import torch
import transformers
from torch import nn

from recall_lightning.measuring.blocks import find_blocks
from recall_lightning.weights.naming import named_weights

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(auto, model_type, **fields):
    config = transformers.AutoConfig.for_model(model_type, **fields)
    return getattr(transformers, auto).from_config(config)


def llama(**fields):
    sizes = TINY | {"intermediate_size": 8, "vocab_size": 16, "num_key_value_heads": 2}
    return build("AutoModelForCausalLM", "llama", **sizes, **fields)


def gpt2():
    return build("AutoModelForCausalLM", "gpt2", n_embd=8, n_layer=2, n_head=2, vocab_size=16)


def qwen2():
    sizes = TINY | {"intermediate_size": 8, "vocab_size": 16, "num_key_value_heads": 2}
    return build("AutoModelForCausalLM", "qwen2", **sizes)


def bert():
    sizes = TINY | {"intermediate_size": 8, "vocab_size": 16}
    return build("AutoModelForSequenceClassification", "bert", **sizes)


def vit():
    sizes = TINY | {"intermediate_size": 8, "image_size": 8, "patch_size": 4}
    return build("AutoModelForImageClassification", "vit", **sizes)


def t5():
    return build(
        "AutoModelForSeq2SeqLM", "t5", d_model=8, d_ff=8, num_layers=2, num_heads=2, d_kv=4,
        vocab_size=16,
    )  # fmt: skip


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.layer1 = nn.Sequential(Residual(), Residual())
        self.layer2 = nn.Sequential(Residual())
        self.head = nn.Linear(4, 2)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)


class FlatCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (llama, ["model.layers.0", "model.layers.1"]),
        (qwen2, ["model.layers.0", "model.layers.1"]),
        (gpt2, ["transformer.h.0", "transformer.h.1"]),
        (bert, ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        (vit, ["vit.layers.0", "vit.layers.1"]),
        (t5, ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
        (
            lambda: nn.Transformer(8, 2, 1, 2, 8),
            ["encoder.layers.0", "decoder.layers.0", "decoder.layers.1"],
        ),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"]),
        (ResNet, ["layer1", "layer2"]),
        (FlatCNN, ["conv1", "conv2", "head"]),
        (lambda: nn.Linear(2, 2), None),
    ],
)
def test_blocks_are_found_by_structure(make, names):
    model = nn.ModuleDict({"model": make()})
    blocks = find_blocks(model)
    assert [b.name for b in blocks] == [f"model.{n}" for n in names or []] or names is None
    assigned = [name for block in blocks for name in block.weights]
    assert sorted(assigned) == sorted(named_weights(model))
    assert sum(block.share for block in blocks) == pytest.approx(1)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_go_to_the_first_block_norm_and_head_to_the_last(tied):
    first, last = find_blocks(llama(tie_word_embeddings=tied))
    assert "model.embed_tokens.weight" in first.weights
    assert "model.norm.weight" in last.weights
    assert ("lm_head.weight" in last.weights) is not tied


def test_a_decoders_own_embedding_goes_to_the_decoder():
    model = build(
        "AutoModelForSpeechSeq2Seq", "whisper", vocab_size=16, d_model=8, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    encoder, decoder = find_blocks(model)
    assert "model.decoder.embed_positions.weight" in decoder.weights
    assert "model.encoder.conv1.weight" in encoder.weights


def test_a_normalisation_belongs_to_the_layer_before_it():
    conv1, _, _ = find_blocks(FlatCNN())
    assert {"conv1.weight", "norm1.weight", "norm1.running_mean"} <= set(conv1.weights)
    assert conv1.output == "norm1"


def test_a_small_stack_beside_the_model_is_not_taken_for_it():
    model = FlatCNN()
    model.extra_heads = nn.ModuleList([Residual(), Residual()])
    assert [b.name for b in find_blocks(model)][:2] == ["conv1", "conv2"]


def test_patterns_choose_the_outermost_matches():
    blocks = find_blocks(llama(), ["model.layers.*"])
    assert [block.name for block in blocks] == ["model.layers.0", "model.layers.1"]


def test_a_compiled_layer_keeps_its_name():
    model = llama()
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    assert [block.name for block in find_blocks(model)] == ["model.layers.0", "model.layers.1"]


def test_frozen_blocks_are_no_blocks():
    model = llama()
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    assert [block.name for block in find_blocks(model)] == ["model.layers.1"]


def test_errors_name_the_pattern_or_the_model():
    with pytest.raises(ValueError, match=r"'layer\.\*' matches no module.*has 0, 1"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["layer.*"])
    with pytest.raises(ValueError, match="no block was found in ParameterList"):
        find_blocks(nn.ParameterList([nn.Parameter(torch.ones(2))]))


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_layers_are_layers(norm):
    model = nn.Sequential(norm(nn.Linear(2, 2)), nn.ReLU(), nn.Linear(2, 2))
    assert [block.name for block in find_blocks(model)] == ["0", "2"]


def test_a_layer_with_a_parameter_of_its_own_is_a_layer():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.dropout = nn.Parameter(torch.ones(2)), nn.Dropout()

    model = nn.ModuleDict({"a": Scale(), "b": Scale()})
    assert [block.name for block in find_blocks(model)] == ["a", "b"]


def test_a_child_called_module_keeps_its_name():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.fc = nn.ModuleDict({"fc": nn.Linear(2, 2)}), nn.Linear(2, 2)

    blocks = find_blocks(Wrapped())
    assert [(block.name, block.parameters) for block in blocks] == [("module.fc", 6), ("fc", 6)]


class Part(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(4, 4)


class Sharing(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.a, self.b, self.head = Part(shared), Part(shared), nn.Linear(4, 2)


def test_a_module_in_two_places_is_one_block_by_its_first_name():
    model = Sharing(nn.Linear(4, 4))
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == ["a.shared", "a.own", "b.own", "head"]
    assert sorted(n for b in blocks for n in b.weights) == sorted(named_weights(model))


def test_a_stack_in_two_places_is_found_once():
    stack = nn.ModuleList([Part(nn.Linear(4, 4)) for _ in range(3)])
    assert [b.name for b in find_blocks(Sharing(stack))] == [
        "a.shared.0",
        "a.shared.1",
        "a.shared.2",
    ]


def test_a_shared_module_can_be_named_by_any_of_its_names():
    model = Sharing(nn.Linear(4, 4))
    assert [b.name for b in find_blocks(model, ["b.*"])] == ["a.shared", "b.own"]
