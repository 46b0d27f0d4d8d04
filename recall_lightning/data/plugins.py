"""Streams of other packages, which recipes name by their class as they do the built-in ones."""

import inspect

from recall_lightning import data
from recall_lightning.data.stream import TaskStream
from recall_lightning.plugins import Plugins


def _check(name: str, found: object) -> type[TaskStream]:
    if not (inspect.isclass(found) and issubclass(found, TaskStream)):
        raise ValueError(f"{found!r} must be a subclass of TaskStream")
    if found.__name__ != name:
        raise ValueError(f"its class is called {found.__name__}, which must be {name}")
    return found


STREAM_PLUGINS = Plugins("streams", data.__all__, _check)
"""Subclasses of TaskStream whose name is their entry point's."""
