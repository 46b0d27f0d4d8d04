"""A classifier as anybody would write it in Lightning: nothing of this project is in it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional


class Classifier(LightningModule):
    """Trains a network on cross-entropy, with AdamW and a cosine of its own for each task.

    Batches are inputs and labels, int64 ``(B,)``. Logged are ``train/loss``, ``val/loss`` and
    ``val/acc``.

    Args:
        network: Returns logits ``(B, classes)``.
        lr: Learning rate; the highest where it changes.
        tasks: In how many equal parts a fit is cut, of which each ends near zero; None for a
            constant learning rate.
        warmup: The share of such a part in which the learning rate rises to ``lr``.
        weight_decay: Of AdamW.
        head_lr: Learning rate of ``network.head``, if it has another. A new head wants a larger one
            than the pre-trained encoder, which else learns in its place, for inputs of all tasks.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        tasks: int | None = None,
        warmup: float = 0.0,
        weight_decay: float = 0.01,
        head_lr: float | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.tasks = tasks
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.head_lr = head_lr

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = functional.cross_entropy(self(inputs), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        inputs, labels = batch
        logits = self(inputs)
        self.log("val/loss", functional.cross_entropy(logits, labels), batch_size=len(labels))
        right = (logits.argmax(1) == labels).float().mean()
        self.log("val/acc", right, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        head = []
        if self.head_lr is not None:
            head = list(self.network.get_submodule("head").parameters())
        known = set(head)
        others = [p for p in self.parameters() if p.requires_grad and p not in known]
        groups: list[dict[str, Any]] = [{"params": others}]
        if head:
            groups.append({"params": head, "lr": self.head_lr})
        optimizer = torch.optim.AdamW(groups, self.lr, weight_decay=self.weight_decay)
        if self.tasks is None:
            return optimizer
        steps = math.ceil(self.trainer.estimated_stepping_batches / self.tasks)

        def factor(step: int) -> float:
            part = (step % steps + 0.5) / steps
            rise = part / self.warmup if part < self.warmup else 1.0
            return rise * (1 + math.cos(math.pi * part)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
