"""What a person hands to a Trainer, beside the methods, one a file."""

from typing import TYPE_CHECKING

from recall_lightning._lazily import lazily

if TYPE_CHECKING:
    from recall_lightning.callbacks.early_stopping import TaskEarlyStopping
    from recall_lightning.callbacks.forgetting import ForgettingMonitor
    from recall_lightning.callbacks.fresh_adapter import FreshAdapter
    from recall_lightning.callbacks.learning_rate import WarmupCosine
    from recall_lightning.callbacks.task_aware import TaskAwareCallback

__all__ = [
    "ForgettingMonitor",
    "FreshAdapter",
    "TaskAwareCallback",
    "TaskEarlyStopping",
    "WarmupCosine",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ForgettingMonitor": "forgetting",
        "FreshAdapter": "fresh_adapter",
        "TaskAwareCallback": "task_aware",
        "TaskEarlyStopping": "early_stopping",
        "WarmupCosine": "learning_rate",
    },
)
