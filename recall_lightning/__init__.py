"""Continual training for PyTorch Lightning: merge snapshot and live weights while training runs."""

from typing import TYPE_CHECKING

from recall_lightning._lazily import lazily

if TYPE_CHECKING:
    from recall_lightning.callbacks.forgetting import ForgettingMonitor
    from recall_lightning.callbacks.task_aware import TaskAwareCallback
    from recall_lightning.data.stream import TaskStream
    from recall_lightning.measuring.blocks import Block, find_blocks
    from recall_lightning.merging.rules import MergeInputs, MergeRule
    from recall_lightning.recall.callback import RecallCallback
    from recall_lightning.recall.settings import (
        DriftSettings,
        ImportanceSettings,
        MomentSettings,
        PriorSettings,
        SampleSettings,
        SnapshotSettings,
    )

__all__ = [
    "Block",
    "DriftSettings",
    "ForgettingMonitor",
    "ImportanceSettings",
    "MergeInputs",
    "MergeRule",
    "MomentSettings",
    "PriorSettings",
    "RecallCallback",
    "SampleSettings",
    "SnapshotSettings",
    "TaskAwareCallback",
    "TaskStream",
    "find_blocks",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Block": "measuring.blocks",
        "DriftSettings": "recall.settings",
        "ForgettingMonitor": "callbacks.forgetting",
        "ImportanceSettings": "recall.settings",
        "MergeInputs": "merging.rules",
        "MergeRule": "merging.rules",
        "MomentSettings": "recall.settings",
        "PriorSettings": "recall.settings",
        "RecallCallback": "recall.callback",
        "SampleSettings": "recall.settings",
        "SnapshotSettings": "recall.settings",
        "TaskAwareCallback": "callbacks.task_aware",
        "TaskStream": "data.stream",
        "find_blocks": "measuring.blocks",
    },
)
