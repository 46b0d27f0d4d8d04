"""Experience replay: samples of earlier tasks, kept in a buffer, among those of the new one."""

from recall_lightning.data.replay import ReplayBuffer
from recall_lightning.data.stream import TaskStream
from recall_lightning.methods.method import Method


def _replay(stream: TaskStream, buffer: ReplayBuffer) -> None:
    stream.replay = buffer


METHOD = Method(
    "replay", "experience replay from a buffer", old_data=_replay, settings=ReplayBuffer
)
