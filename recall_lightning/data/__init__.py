"""Task streams: ordered tasks behind one LightningDataModule."""

from recall_lightning.data.digits import DigitsStream
from recall_lightning.data.replay import ReplayBuffer
from recall_lightning.data.stdlib_text import StdlibTextStream
from recall_lightning.data.stream import TaskStream

__all__ = ["DigitsStream", "ReplayBuffer", "StdlibTextStream", "TaskStream"]
