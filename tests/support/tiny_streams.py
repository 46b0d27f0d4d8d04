"""A tiny language model that counts, under an adapter, and tasks of counting otherwise."""

import torch
from torch.utils.data import DataLoader

from recall_lightning.models import CausalLMModule
from recall_lightning.models.lora import LoraSettings, with_lora

LLAMA = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "bos_token_id": None,
}


def sequences(step, rows=16, length=8):
    """Count up by ``step``, modulo 16, each row from another start."""
    return (torch.arange(rows)[:, None] + step * torch.arange(length)) % 16


def counting(step, rows=16, length=8, batch_size=8):
    """Batches of such sequences, always in the same order."""
    data = [{"input_ids": row, "labels": row} for row in sequences(step, rows, length)]
    return DataLoader(data, batch_size=batch_size)


def tiny_llama_module(lr=1e-2, trained_on=None, lora=None):
    """A Llama, trained as a whole to count by ``trained_on``, and under an adapter from then on."""
    torch.manual_seed(0)
    module = CausalLMModule(LLAMA, lambda params: torch.optim.Adam(params, lr=lr))
    if trained_on is not None:
        ids, optimizer = sequences(trained_on), torch.optim.Adam(module.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            module.model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    if lora is not None:
        module.lora = LoraSettings(**{"r": 4, "alpha": 8, "target_modules": "all-linear"} | lora)
        module.model = with_lora(module.model, module.lora)
    return module


def loss_of(module, step):
    """Nats a token of counting by ``step``."""
    ids = sequences(step)
    with torch.no_grad():
        return module.model(input_ids=ids, labels=ids).loss.item()
