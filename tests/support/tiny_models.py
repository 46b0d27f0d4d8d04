"""Models of a few kilobytes, as folders that save_pretrained writes."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from recall_lightning.weights.reading import open_model

WORDS = ["<pad>", "<unk>", *(f"w{i}" for i in range(2, 64))]
SENTENCES = [" ".join(WORDS[2 + (7 * i + 3 * j) % 62] for j in range(2 + i)) for i in range(8)]


def llama(seed, tied=False, near=None, **config):
    """Return a random model, or one whose weights lie near those of another."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 32,
    }
    config = LlamaConfig(**sizes | config, tie_word_embeddings=tied, pad_token_id=0)
    model = LlamaForCausalLM(config)
    if near is not None:
        with torch.no_grad():
            for own, other in zip(model.parameters(), near.parameters(), strict=True):
                own.copy_(other + 0.02 * torch.randn_like(own))
    return model


def saved(model, folder, dtype=torch.float32, shard_size="5GB", tokenizer=True):
    """Save a model in a dtype; return the folder's path as text."""
    model.to(dtype).generation_config = GenerationConfig(pad_token_id=0, max_new_tokens=7)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
        split = Tokenizer(words)
        split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=split, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(folder)
    return str(folder)


def checkpoint(model, file, **more):
    """Save a model as the ``model`` of a LightningModule's checkpoint."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state | more, "epoch": 1}, file)
    return str(file)


def tensors(path):
    """Return copies of a model's tensors."""
    return {name: tensor.clone() for name, tensor in open_model(path).items()}


def bits_equal(first, second):
    """Tell whether two models have the same names, dtypes and bytes."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(_bytes(tensor), _bytes(second[name]))
        for name, tensor in first.items()
    )


def loaded(path):
    """Load a folder as a user would."""
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def _bytes(tensor):
    return tensor.reshape(-1).view(torch.uint8)
