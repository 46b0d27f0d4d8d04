"""MiniLM, a pre-trained encoder of sentences, through the twenty newsgroups."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.real.classifier import Classifier
from benchmarks.real.newsgroups import class_incremental, domain_incremental
from benchmarks.real.packages import file_of
from benchmarks.real.texts import Encode, by_category, drawn, filled, padded
from recall_lightning.data import TaskStream

_TEMPERATURE = 0.05  # of the similarities, as sentence encoders of this kind are trained


def model_folder() -> Path:
    """Return the folder that holds all-MiniLM-L6-v2."""
    return {file_of(f"minilm_{part}").parent for part in ("config", "tokenizer", "weights")}.pop()


def word_pieces() -> Encode:
    """Return a function from a text to the model's tokens, [CLS] and [SEP] around them."""
    tokenizer = Tokenizer.from_file(str(file_of("minilm_tokenizer")))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text).ids


def newsgroups(
    seed: int = 0,
    train_per_group: int = 150,
    val_per_group: int = 25,
    length: int = 48,
    retrieved: int = 100,
    epochs_per_task: int = 2,
    batch_size: int = 16,
    task_is_told: bool = False,
) -> TaskStream:
    """The twenty newsgroups in alphabetical order, four a task, under the labels 0 to 19.

    Behind the tasks' held-out texts, which are of the corpus's own test set, comes what the encoder
    could do before: see :func:`halves`.

    Args:
        seed: Draws the texts, and orders them.
        train_per_group: Texts of each group to train on.
        val_per_group: Held-out texts of each group.
        length: Tokens of a text that are read.
        retrieved: News articles whose halves are to find each other.
        epochs_per_task: Epochs of each task.
        batch_size: Texts in a training batch.
        task_is_told: Whether the task's number stands before a text's tokens, and labels are 0 to 3
            in each task.
    """
    encode = word_pieces()
    return class_incremental(
        encode,
        seed,
        train_per_group,
        val_per_group,
        length,
        probes={"retrieval": halves(encode, length, retrieved, seed)},
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=retrieved,
        task_is_told=task_is_told,
    )


def topics(
    seed: int = 0,
    train_per_group: int = 150,
    val_per_group: int = 25,
    length: int = 48,
    retrieved: int = 100,
    epochs_per_task: int = 2,
    batch_size: int = 16,
) -> TaskStream:
    """Four topics, of which each task has another newsgroup, and behind them what was known before.

    Args:
        seed: Draws the texts, and orders them.
        train_per_group: Texts of each group to train on.
        val_per_group: Held-out texts of each group.
        length: Tokens of a text that are read.
        retrieved: News articles whose halves are to find each other, see :func:`halves`.
        epochs_per_task: Epochs of each task.
        batch_size: Texts in a training batch.
    """
    encode = word_pieces()
    return domain_incremental(
        encode,
        seed,
        train_per_group,
        val_per_group,
        length,
        probes={"retrieval": halves(encode, length, retrieved, seed)},
        epochs_per_task=epochs_per_task,
        batch_size=batch_size,
        eval_batch_size=retrieved,
    )


def halves(encode: Encode, length: int, count: int, seed: int) -> TensorDataset:
    """News articles in two: what an encoder of sentences is for is to find one part by the other.

    The parts are the words 1 to 20 and 31 to 50, so that what lies between is in neither.

    Returns:
        Tokens of the first parts and of the second, both int64 ``(count, length)``.
    """
    articles = by_category(file_of("newswire_test")).values()
    words = [text.split() for texts in articles for text in texts]
    long = [each for each in words if len(each) >= 50]
    chosen = drawn([" ".join(each) for each in long], count, seed)
    parts = [(each.split()[:20], each.split()[30:50]) for each in chosen]
    first, second = (
        torch.tensor([padded(encode(" ".join(part)), length) for part in side])
        for side in zip(*parts, strict=True)
    )
    return TensorDataset(first, second)


class SentenceEncoder(nn.Module):
    """MiniLM, mean pooling over a text's tokens, and a linear head, or one for each task.

    Args:
        classes: Outputs of a head, which begins from random weights.
        lora_rank: Rank of an adapter on all linear layers of the encoder, which is frozen beside
            it; None trains the whole encoder.
        heads: How many tasks have a head of their own; the number of the task then stands before
            a text's tokens.
    """

    def __init__(
        self, classes: int = 20, lora_rank: int | None = None, heads: int | None = None
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        encoder: Any = AutoModel.from_pretrained(
            model_folder(), local_files_only=True, add_pooling_layer=False
        )
        if lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            settings = LoraConfig(
                r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear"
            )
            encoder = get_peft_model(encoder, settings)
        self.encoder = encoder.train()  # it comes in evaluation mode, without dropout
        self.heads = heads
        self.head = nn.Linear(encoder.config.hidden_size, classes * (heads or 1))

    def embed(self, tokens: Tensor) -> Tensor:
        """Means over the hidden states of texts, float32 ``(B, hidden size)``."""
        mask = filled(tokens)
        hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        shown = mask.unsqueeze(2).to(hidden.dtype)
        return (hidden * shown).sum(1) / shown.sum(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of tokens ``(B, T)``, or of tasks and tokens ``(B, 1 + T)``."""
        if self.heads is None:
            return self.head(self.embed(tokens))
        tasks, tokens = tokens[:, 0], tokens[:, 1:]
        of_heads = self.head(self.embed(tokens)).unflatten(1, (self.heads, -1))
        return of_heads[torch.arange(len(tasks), device=tasks.device), tasks]


class SentenceClassifier(Classifier):
    """A classifier of sentences that is also asked to find an article's one half by the other."""

    network: SentenceEncoder

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch; where labels would be, there may be tokens of what is to be found."""
        inputs, others = batch
        if others.ndim == 1:
            return super().validation_step(batch, batch_idx, dataloader_idx)
        first, second = (
            functional.normalize(self.network.embed(side), dim=1) for side in (inputs, others)
        )
        similarities = first @ second.T / _TEMPERATURE
        own = torch.arange(len(first), device=similarities.device)
        loss = functional.cross_entropy(similarities, own)
        right = (similarities.argmax(1) == own).float().mean()
        self.log("val/loss", loss, batch_size=len(own))
        self.log("val/acc", right, batch_size=len(own))
        return None
