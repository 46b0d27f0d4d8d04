"""A user's module around a tiny causal language model, and its task."""

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from tests.support.tiny_transformers import tiny_llama


class Language(LightningModule):
    def __init__(self, tokenizer=None, **config):
        super().__init__()
        torch.manual_seed(0)
        self.model = tiny_llama(**({"vocab_size": 300, "bos_token_id": 0} | config))
        self.tokenizer = tokenizer

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def texts(samples=16):
    ids = torch.randint(250, 254, (samples, 6), generator=torch.Generator().manual_seed(0))
    return DataLoader([{"input_ids": row, "labels": row} for row in ids], batch_size=4)
