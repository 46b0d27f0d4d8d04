"""Files of GGUF as llama.cpp has them, of tiny models."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def save_gguf(model, file, kind=gguf.GGMLQuantizationType.Q8_0):
    """Write a Llama with the letters of bytes and two pairs for its 260 tokens; return its folder.

    Weights of linear layers and embeddings are quantised, and are so in the model, too, afterwards.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        if values.ndim == 2:
            packed = gguf.quants.quantize(_rows_as_in_file(name, values, config), kind)
            writer.add_tensor(_name_in_file(name), packed, raw_dtype=kind)
            unpacked = gguf.quants.dequantize(packed, kind)
            weight.data.copy_(weight.new_tensor(_rows_as_in_model(name, unpacked, config)))
        else:
            writer.add_tensor(_name_in_file(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(Path(file).parent)


def _add_tokenizer(writer):
    tokens = ["<|endoftext|>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "he"]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([control, control, *[normal] * (len(tokens) - 2)])
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)


def _name_in_file(name):
    where = name.removesuffix(".weight")
    if where in ENDS:
        return f"{ENDS[where]}.weight"
    _, _, layer, own = where.split(".", 3)
    return f"blk.{layer}.{(LINEAR | NORMS)[own]}.weight"


def _heads(name, config):
    own = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return own.get(name.split(".")[-2])


def _rows_as_in_file(name, values, config):
    """Rotary embeddings turn neighbouring rows there, and rows half a head apart here."""
    heads = _heads(name, config)
    if heads is None:
        return values
    parted = values.reshape(heads, 2, -1, values.shape[-1])
    return np.ascontiguousarray(parted.swapaxes(1, 2).reshape(values.shape))


def _rows_as_in_model(name, values, config):
    heads = _heads(name, config)
    if heads is None:
        return values
    parted = values.reshape(heads, -1, 2, values.shape[-1])
    return parted.swapaxes(1, 2).reshape(values.shape)
