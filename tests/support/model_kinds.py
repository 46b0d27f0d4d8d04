"""Models of several kinds, with data to train them on."""

import torch
import transformers
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from tests.support.training import Plain, loader


class BatchNormCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, 2)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))


class Part(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared, self.own = shared, nn.Linear(8, 8)

    def forward(self, inputs):
        return self.own(self.shared(inputs).tanh())


class Shared(nn.Module):
    """One layer in two places, beside a parameter that is in none."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(1))
        self.first, self.second, self.head = Part(shared), Part(shared), nn.Linear(8, 2)

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs)) * self.scale)


class Batches(LightningModule):
    """Trains any model by any loss on any batch."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.model, batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Seq2Seq(Batches):
    def forward(self, source, target):
        return self.model(source, target)


def cross_entropy(model, batch):
    output = model(batch[0])
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return nn.functional.cross_entropy(logits, batch[1])


def images(count=32):
    return list(zip(torch.randn(count, 1, 8, 8), torch.randint(0, 2, (count,)), strict=True))


def encodings(items):
    ids = torch.stack(items)
    return transformers.BatchEncoding(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    )


def vit():
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, num_channels=1, num_labels=2,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


CASES = {
    "cnn with batchnorm": lambda: (
        Batches(BatchNormCNN(), cross_entropy),
        DataLoader(images(), batch_size=8),
    ),
    "shared layer": lambda: (Batches(Shared(), cross_entropy), loader(0, samples=32)),
    "vit": lambda: (Batches(vit(), cross_entropy), DataLoader(images(), batch_size=8)),
    "llama": lambda: (
        Batches(llama(), lambda model, batch: model(**batch).loss),
        DataLoader(torch.randint(0, 16, (32, 6)), batch_size=8, collate_fn=encodings),
    ),
    "encoder-decoder": lambda: (
        Seq2Seq(
            nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            lambda model, batch: model(batch[0], batch[1]).square().mean(),
        ),
        DataLoader(
            list(zip(torch.randn(32, 5, 8), torch.randn(32, 7, 8), strict=True)), batch_size=8
        ),
    ),
}


class Diverges(Plain):
    """A weight is no number from the sixth step on."""

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 5:
            nn.init.constant_(self.net[2].weight, float("nan"))
