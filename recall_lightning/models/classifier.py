"""Classification with any module that returns logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional

from recall_lightning.models.construction import build_optimizer, build_transformer
from recall_lightning.models.evaluation import LoaderMetrics, RatioOfSums
from recall_lightning.models.scoring import right_predictions
from recall_lightning.models.step_mean import StepMean


class ClassifierModule(LightningModule):
    """A classifier, trained on cross-entropy and scored separately on every validation loader.

    Batches are ``(inputs, labels)``, or mappings with ``labels`` and what the model takes by name,
    such as ``pixel_values``. Labels are int64 ``(B,)``; samples with -100 do not count.

    The loss of an optimizer step is the mean over all of its samples, in all batches that are
    accumulated and on all processes. Logged are ``train/loss``, which is that of the step, and, for
    each validation loader, over all of its samples, ``val/loss`` (mean nats) and ``val/acc``. Both
    are NaN for a model whose logits are no numbers.

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
        self._step_mean = StepMean()
        self.val_metrics = LoaderMetrics({"loss": RatioOfSums, "acc": RatioOfSums})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(B, num_classes)``."""
        output = self.model(*args, **kwargs)
        return output if isinstance(output, Tensor) else output.logits

    def training_step(
        self, batch: Mapping[str, Tensor] | Sequence[Tensor], batch_idx: int
    ) -> Tensor:
        """Nats of a batch, such that a step's loss is the mean over all of its samples."""
        logits, labels = self._predict(batch)
        total = functional.cross_entropy(logits, labels, reduction="sum")
        loss = self._step_mean.loss(self, batch_idx, total, (labels != -100).sum())
        self.log("train/loss", self._step_mean.mean, prog_bar=True)
        return loss

    @property
    def loss_share(self) -> Tensor | float:
        """What a mean over the current batch counts in the loss that it was trained on."""
        return self._step_mean.share

    def on_after_backward(self) -> None:
        """Make a step's gradients those of the mean over its samples."""
        self._step_mean.correct_gradients(self)

    def validation_step(
        self,
        batch: Mapping[str, Tensor] | Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a batch."""
        logits, labels = self._predict(batch)
        logits, labels = logits[labels != -100], labels[labels != -100]
        nats = functional.cross_entropy(logits, labels, reduction="sum")
        right = right_predictions(logits, labels).sum()
        updates = {"loss": (nats, len(labels)), "acc": (right, len(labels))}
        self.val_metrics.update_and_log(self, dataloader_idx, updates)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a half accumulated step goes on from."""
        self._step_mean.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`on_save_checkpoint` kept."""
        self._step_mean.load(checkpoint)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule if there is one."""
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    def _predict(self, batch: Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, in float32, and labels of a batch."""
        if isinstance(batch, Mapping):
            named = {name: value for name, value in batch.items() if name != "labels"}
            logits, labels = self(**named), batch["labels"]
        else:
            inputs, labels = batch
            logits = self(inputs)
        if logits.shape != (len(labels), self.num_classes):
            raise MisconfigurationException(
                f"the model returns logits of shape {tuple(logits.shape)} for {len(labels)} "
                f"samples, but num_classes={self.num_classes}: give it as many outputs"
            )
        return logits.float(), labels


def _build(model: str | dict[str, Any], num_classes: int) -> torch.nn.Module:
    if isinstance(model, str):
        return build_transformer(
            "ImageClassification", model, num_labels=num_classes, ignore_mismatched_sizes=True
        )
    if model.get("num_labels", num_classes) != num_classes:
        raise MisconfigurationException(
            f"model has num_labels={model['num_labels']}, which must be num_classes={num_classes}."
        )
    return build_transformer("ImageClassification", model, num_labels=num_classes)
