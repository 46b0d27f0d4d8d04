"""Classifiers of texts from random weights, and the streams that they are trained on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.real.newsgroups import GROUPS_A_TASK, class_incremental
from benchmarks.real.packages import file_of
from benchmarks.real.texts import by_account, by_category, drawn, filled, hashed_words, labelled
from recall_lightning.data import TaskStream

Texts = dict[str, list[str]]
DOMAINS = {
    "newsgroups": ["comp.windows.x", "rec.sport.hockey", "sci.med", "talk.politics.mideast"],
    "newswire": ["acq", "crude", "earn", "trade"],
    "tweets": ["KaiserHealthNews", "gdnhealthcare", "goodhealth", "reuters_health"],
}


def domains(
    seed: int = 0,
    train_per_task: int = 2000,
    val_per_task: int = 300,
    buckets: int = 1000,
    length: int = 40,
    epochs_per_task: int = 5,
    batch_size: int = 32,
) -> TaskStream:
    """Four newsgroups, four topics of Reuters and four accounts that tweet, all as labels 0 to 3.

    Args:
        seed: Draws the texts, and orders them.
        train_per_task: Texts of each domain to train on.
        val_per_task: Held-out texts of each domain.
        buckets: Numbers that words are hashed to, from 1.
        length: Words of a text that are read.
        epochs_per_task: Epochs of each domain.
        batch_size: Texts in a training batch.
    """
    encode = hashed_words(buckets)
    pairs = []
    for domain, classes in DOMAINS.items():
        labels = {name: label for label, name in enumerate(classes)}
        train, val = (
            labelled(_evenly(texts, count, seed), labels, encode, length)
            for texts, count in zip(
                _parted(domain, val_per_task, seed), (train_per_task, val_per_task), strict=True
            )
        )
        pairs.append((train, val))
    return TaskStream.from_datasets(
        pairs,
        list(DOMAINS),
        seed=seed,
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=val_per_task,
    )


def groups(
    seed: int = 0,
    train_per_group: int = 400,
    val_per_group: int = 100,
    buckets: int = 4096,
    length: int = 150,
    epochs_per_task: int = 8,
    batch_size: int = 32,
) -> TaskStream:
    """The twenty newsgroups in alphabetical order, four a task, under the labels 0 to 19.

    Args:
        seed: Draws the texts, and orders them.
        train_per_group: Texts of each group to train on, where there are as many.
        val_per_group: Held-out texts of each group.
        buckets: Numbers that words are hashed to, from 1.
        length: Words of a text that are read.
        epochs_per_task: Epochs of each task.
        batch_size: Texts in a training batch.
    """
    return class_incremental(
        hashed_words(buckets),
        seed,
        train_per_group,
        val_per_group,
        length,
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=GROUPS_A_TASK * val_per_group,
    )


def _parted(domain: str, val: int, seed: int) -> tuple[Texts, Texts]:
    """Return a domain's texts to train on, by class, and those to hold out.

    Corpora have a part for tests; of the tweets, of which there are thousands by each account, as
    many of each as are held out in all are put aside.
    """
    if domain != "tweets":
        learned, held_out = (by_category(file_of(f"{domain}_{part}")) for part in ("train", "test"))
    else:
        shuffled = {name: drawn(t, len(t), seed) for name, t in by_account(file_of(domain)).items()}
        learned = {name: texts[val:] for name, texts in shuffled.items()}
        held_out = {name: texts[:val] for name, texts in shuffled.items()}
    classes = DOMAINS[domain]
    return {name: learned[name] for name in classes}, {name: held_out[name] for name in classes}


def _evenly(texts: Mapping[str, list[str]], count: int, seed: int) -> Texts:
    """Draw so many texts in all: the same number of each class, as far as each has them."""
    kept: Texts = {}
    for left, name in enumerate(sorted(texts, key=lambda name: len(texts[name]))):
        share = (count - sum(map(len, kept.values()))) // (len(texts) - left)
        kept[name] = drawn(texts[name], share, seed)
    return kept


class TransformerClassifier(nn.Module):
    """Two layers of ``nn.TransformerEncoder``, the mean over words, and a linear head.

    Args:
        classes: Outputs.
        buckets: Largest number of a word.
        length: Words of a text.
        width: Of the hidden states.
        layers: Of the encoder.
    """

    def __init__(
        self,
        classes: int = 4,
        buckets: int = 1000,
        length: int = 40,
        width: int = 48,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of words ``(B, length)``."""
        shown = filled(tokens)
        hidden = self.words(tokens) + self.positions
        hidden = self.encoder(hidden, src_key_padding_mask=~shown)
        return self.head(_mean_of_shown(hidden, tokens))


class RecurrentClassifier(nn.Module):
    """A layer of ``nn.GRU``, the mean over words, and a linear head.

    Args:
        classes: Outputs.
        buckets: Largest number of a word.
        width: Of the word vectors and the hidden states.
    """

    def __init__(self, classes: int = 4, buckets: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of words ``(B, length)``."""
        hidden, _ = self.recurrent(self.words(tokens))
        return self.head(_mean_of_shown(hidden, tokens))


class BagClassifier(nn.Module):
    """The mean of a text's word vectors (``nn.EmbeddingBag``), a hidden layer, and a head.

    Args:
        classes: Outputs.
        buckets: Largest number of a word.
        width: Of the word vectors and the hidden layer.
    """

    def __init__(self, classes: int = 20, buckets: int = 4096, width: int = 64) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(buckets + 1, width, mode="mean", padding_idx=0)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of words ``(B, length)``."""
        return self.head(torch.relu(self.hidden(self.words(tokens))))


def _mean_of_shown(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean of hidden states ``(B, length, width)`` over words that are no padding."""
    weights = filled(tokens).unsqueeze(2).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
