"""Task streams: ordered tasks behind one LightningDataModule."""

from recall_lightning.data.digits import DigitsStream
from recall_lightning.data.instruction_stream import InstructionStream, InstructionTask
from recall_lightning.data.instructions.conversations import Conversation
from recall_lightning.data.instructions.templates import Template
from recall_lightning.data.replay import ReplayBuffer
from recall_lightning.data.stdlib_text import StdlibTextStream
from recall_lightning.data.stream import TaskStream
from recall_lightning.data.text_files import TextFilesStream, TextTask

__all__ = [
    "Conversation",
    "DigitsStream",
    "InstructionStream",
    "InstructionTask",
    "ReplayBuffer",
    "StdlibTextStream",
    "TaskStream",
    "Template",
    "TextFilesStream",
    "TextTask",
]
