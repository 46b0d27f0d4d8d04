import pytest
from transformers import BertConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

from recall_lightning.merging.folders.configs import config_differences

LLAMA = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4}
LINEAR = {"type": "linear", "factor": 2.0}


def same(first, other):
    return not config_differences(first, other) and not config_differences(other, first)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 2),
        ("num_key_value_heads", 2),
        ("head_dim", 8),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-5),
        ("rope_theta", 5e5),
        ("rope_scaling", LINEAR),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
        ("max_position_embeddings", 7),
        ("tie_word_embeddings", True),
        ("model_type", "mistral"),
        ("id2label", {"0": "good", "1": "bad"}),
        ("sliding_window", 8),
        ("logit_scale", 0.5),
    ],
)
def test_what_makes_another_function_of_the_weights_is_a_difference(field, value):
    lines = config_differences(LLAMA, LLAMA | {field: value})
    assert any(str(value).split(":")[-1].strip("{}' ") in line for line in lines)
    assert not same(LLAMA | {field: value}, LLAMA)


def test_a_part_of_a_model_is_compared_too():
    first = {"model_type": "new", "text_config": {"num_attention_heads": 4}}
    other = {"model_type": "new", "text_config": {"num_attention_heads": 8}}
    assert config_differences(first, other) == ["text_config.num_attention_heads is 8 and not 4"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_name_or_path", "elsewhere"),
        ("transformers_version", "4.0.0"),
        ("torch_dtype", "bfloat16"),
        ("dtype", "float16"),
        ("architectures", ["LlamaModel"]),
        ("use_cache", False),
        ("attention_dropout", 0.1),
        ("initializer_range", 0.5),
        ("eos_token_id", [2, 3]),
        ("id2label", {"0": "LABEL_0", "1": "LABEL_1"}),
        ("note", "trained on a Tuesday"),
        ("rms_norm_eps", 1e-6),  # the default
        ("num_key_value_heads", 4),
        ("head_dim", 4),
        ("head_dim", None),
        ("rope_theta", 10000),
        ("rope_scaling", None),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
    ],
)
def test_names_dtypes_and_defaults_are_none(field, value):
    assert same(LLAMA, LLAMA | {field: value})


@pytest.mark.parametrize("kind", ["llama", "of_nobody"])
def test_rotary_embeddings_are_the_same_in_both_forms(kind):
    base = {"model_type": kind, "hidden_size": 16, "num_attention_heads": 4}
    old = base | {"rope_theta": 5e5, "rope_scaling": LINEAR}
    new = base | {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 500000}}
    assert same(old, new)
    assert not same(old, base | {"rope_parameters": new["rope_parameters"] | {"factor": 4}})


@pytest.mark.parametrize(
    "config", [LlamaConfig, Qwen2Config, GPT2Config, BertConfig, Gemma3TextConfig]
)
def test_defaults_are_the_same_written_and_left_out(config):
    assert same({"model_type": config.model_type}, config().to_dict())
