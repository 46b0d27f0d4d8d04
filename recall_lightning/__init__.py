"""Continual training for PyTorch Lightning: merge snapshot and live weights while training runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recall_lightning.callbacks.forgetting import ForgettingMonitor
    from recall_lightning.callbacks.task_aware import TaskAwareCallback
    from recall_lightning.data.stream import TaskStream
    from recall_lightning.measuring.blocks import Block, find_blocks
    from recall_lightning.merging.rules import MergeInputs, MergeRule
    from recall_lightning.recall.callback import RecallCallback

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

_MODULES = {
    "Block": "measuring.blocks",
    "ForgettingMonitor": "callbacks.forgetting",
    "MergeInputs": "merging.rules",
    "MergeRule": "merging.rules",
    "RecallCallback": "recall.callback",
    "TaskAwareCallback": "callbacks.task_aware",
    "TaskStream": "data.stream",
    "find_blocks": "measuring.blocks",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command must start at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
