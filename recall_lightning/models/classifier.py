"""Classification with any module that returns logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from recall_lightning.models.construction import build_optimizer, build_transformer
from recall_lightning.models.evaluation import LoaderMetrics, RatioOfSums


class ClassifierModule(LightningModule):
    """A classifier, trained on cross-entropy and scored separately on every validation loader.

    Batches are ``(inputs, labels)``, or mappings with ``labels`` and what the model takes by name,
    such as ``pixel_values``. Labels are int64 ``(B,)``.

    Logged are ``train/loss`` and, for each validation loader, over all of its samples, ``val/loss``
    (mean nats) and ``val/acc``.

    Example::

        >>> model = ClassifierModule(torch.nn.Linear(4, 3), num_classes=3)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])

    Args:
        model: A module that returns logits ``(B, num_classes)``, or an output with ``.logits``;
            or folder or hub id of a pre-trained image classifier, whose head is replaced by a new
            one if it has another number of classes; or a mapping with ``model_type`` and config
            fields, for an image classifier with random weights.
        num_classes: Number of classes.
        optimizer: Makes an optimizer of the trainable parameters.
        lr_scheduler: Makes a scheduler of the optimizer; it steps once an epoch.

    Raises:
        MisconfigurationException: If ``model`` can be neither loaded nor built, or has another
            number of classes.
    """

    def __init__(
        self,
        model: torch.nn.Module | str | dict[str, Any],
        num_classes: int,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.model = model if isinstance(model, torch.nn.Module) else _build(model, num_classes)
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.val_metrics = LoaderMetrics(
            {
                "loss": RatioOfSums,
                "acc": partial(MulticlassAccuracy, num_classes, average="micro"),
            }
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(B, num_classes)``."""
        output = self.model(*args, **kwargs)
        return output if isinstance(output, Tensor) else output.logits

    def training_step(
        self, batch: Mapping[str, Tensor] | Sequence[Tensor], batch_idx: int
    ) -> Tensor:
        """Mean cross-entropy of a batch, in nats."""
        logits, labels = self._predict(batch)
        loss = functional.cross_entropy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(
        self,
        batch: Mapping[str, Tensor] | Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a batch."""
        logits, labels = self._predict(batch)
        nats = functional.cross_entropy(logits, labels, reduction="sum")
        updates = {"loss": (nats, len(labels)), "acc": (logits, labels)}
        self.val_metrics.update_and_log(self, dataloader_idx, updates)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule if there is one."""
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    def _predict(self, batch: Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, in float32, and labels of a batch."""
        if isinstance(batch, Mapping):
            named = {name: value for name, value in batch.items() if name != "labels"}
            return self(**named).float(), batch["labels"]
        inputs, labels = batch
        return self(inputs).float(), labels


def _build(model: str | dict[str, Any], num_classes: int) -> torch.nn.Module:
    if isinstance(model, str):
        return build_transformer(
            "ImageClassification", model, num_labels=num_classes, ignore_mismatched_sizes=True
        )
    if model.get("num_labels", num_classes) != num_classes:
        raise MisconfigurationException(
            f"model has num_labels={model['num_labels']}, but num_classes={num_classes}."
        )
    return build_transformer("ImageClassification", model, num_labels=num_classes)
