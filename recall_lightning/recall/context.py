"""A task under training, as what measures and merges sees it."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer

from recall_lightning.callbacks._trainer.clock import TaskClock
from recall_lightning.merging.structure import Structure
from recall_lightning.weights.snapshot import Snapshot


@dataclass(frozen=True)
class TaskContext:
    """What a statistic or a merge is told at a hook.

    Attributes:
        trainer: The Trainer.
        pl_module: The model.
        clock: Tells the task and how far it has come.
        structure: The model's blocks, linear maps and LoRA updates in this task.
        snapshots: What is merged, oldest first; empty in a task that is only learned from.
    """

    trainer: Trainer
    pl_module: LightningModule
    clock: TaskClock
    structure: Structure
    snapshots: Sequence[Snapshot]
