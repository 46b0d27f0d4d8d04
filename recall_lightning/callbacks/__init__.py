"""What is handed to a Trainer, one callback a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "ForgettingMonitor": "forgetting",
    "FreshAdapter": "fresh_adapter",
    "TaskAwareCallback": "task_aware",
    "TaskEarlyStopping": "early_stopping",
    "WarmupCosine": "learning_rate",
}


def __getattr__(name: str) -> Any:
    """Import a callback when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
