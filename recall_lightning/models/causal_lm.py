"""Causal language modelling with a Hugging Face transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional

from recall_lightning.models.construction import build_optimizer, build_transformer
from recall_lightning.models.evaluation import LoaderMetrics, RatioOfSums


class Perplexity(RatioOfSums):
    """exp of nats per token.

    ``torchmetrics.text.Perplexity`` takes the logarithm of probabilities, so a single token that a
    forgetful model finds all but impossible makes the whole value infinite. This one takes nats.
    """

    def compute(self) -> Tensor:
        """The perplexity, of shape ``()``."""
        return super().compute().exp()


class CausalLMModule(LightningModule):
    """A causal language model, trained on the next token and scored separately on every loader.

    Batches are mappings with ``input_ids`` and ``labels``, int64 ``(B, L)``, and whatever else the
    model takes, such as ``attention_mask``. Labels are not shifted; -100 marks what is not
    predicted.

    Logged are ``train/loss`` and, for each validation loader, over all of its predicted tokens:

    - ``val/loss``: mean nats per token,
    - ``val/acc``: the part of tokens whose most likely prediction is right,
    - ``val/perplexity``: exp of the loss,
    - ``val/bits_per_byte``: nats / ln 2 / bytes, if batches hold ``num_bytes``, int64 ``(B,)``, the
      number of bytes that the predicted tokens of each sample stand for.

    Example::

        >>> model = CausalLMModule(
        ...     {
        ...         "model_type": "llama",
        ...         "vocab_size": 256,
        ...         "hidden_size": 16,
        ...         "intermediate_size": 32,
        ...         "num_hidden_layers": 2,
        ...         "num_attention_heads": 2,
        ...     }
        ... )
        >>> model(torch.zeros(1, 5, dtype=torch.long)).logits.shape
        torch.Size([1, 5, 256])

    Args:
        model: Folder or hub id of a pre-trained model, which keeps the dtype it was saved in; or a
            mapping with ``model_type`` and config fields, for a model with random weights.
        optimizer: Makes an optimizer of the trainable parameters.
        lr_scheduler: Makes a scheduler of the optimizer; it steps once an epoch.

    Raises:
        MisconfigurationException: If ``model`` can be neither loaded nor built.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.model = build_transformer("CausalLM", model)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.val_metrics = LoaderMetrics(
            {
                "loss": RatioOfSums,
                "acc": RatioOfSums,
                "perplexity": Perplexity,
                "bits_per_byte": RatioOfSums,
            }
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own output: ``logits`` ``(B, L, vocabulary)`` and, given labels, ``loss``."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean nats per token of a batch."""
        loss = self(**{name: value for name, value in batch.items() if name != "num_bytes"}).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(
        self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch."""
        inputs = {k: value for k, value in batch.items() if k not in ("labels", "num_bytes")}
        logits = self(**inputs).logits[:, :-1].flatten(0, 1).float()
        targets = batch["labels"][:, 1:].flatten()
        tokens = (targets != -100).sum()
        nats = functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        correct = (logits.argmax(-1) == targets).sum()  # no prediction is -100
        updates = {"loss": (nats, tokens), "acc": (correct, tokens), "perplexity": (nats, tokens)}
        if "num_bytes" in batch:
            updates["bits_per_byte"] = (nats / math.log(2), batch["num_bytes"].sum())
        self.val_metrics.update_and_log(self, dataloader_idx, updates)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule if there is one."""
        return build_optimizer(self, self.optimizer, self.lr_scheduler)
