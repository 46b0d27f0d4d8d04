"""Training on all tasks at once: the upper reference."""

from recall_lightning.data.stream import TaskStream
from recall_lightning.methods.method import Method


def _join(stream: TaskStream, settings: None) -> None:
    stream.joint = True


METHOD = Method("joint", "training on all tasks at once, the upper reference", old_data=_join)
