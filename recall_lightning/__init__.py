"""Continual training for PyTorch Lightning: merge snapshot and live weights while training runs."""

from recall_lightning.callbacks.forgetting import ForgettingMonitor
from recall_lightning.callbacks.recall import RecallCallback
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.data.stream import TaskStream
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.representations.blocks import Block, find_blocks

__all__ = [
    "Block",
    "ForgettingMonitor",
    "MergeInputs",
    "MergeRule",
    "RecallCallback",
    "TaskAwareCallback",
    "TaskStream",
    "find_blocks",
]
