"""The methods that the command line knows: their callbacks, and whether they need old data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recall_lightning.data import ReplayBuffer, TaskStream
from recall_lightning.methods.adaptive import AdaptiveInterval
from recall_lightning.methods.ewc import ElasticWeightConsolidation
from recall_lightning.methods.hft import HalfFineTuning
from recall_lightning.methods.l2 import L2ToSnapshot
from recall_lightning.methods.low_lr import LowLearningRate
from recall_lightning.methods.lwf import LearningWithoutForgetting
from recall_lightning.methods.recall_paper import RecallPaper, RecallPaperLoop
from recall_lightning.methods.sfa import SequentialFinetuningAveraging
from recall_lightning.methods.wise_ft import WiseFT
from recall_lightning.recall.callback import RecallCallback


@dataclass(frozen=True)
class Method:
    """A way to train on a stream.

    Attributes:
        name: Its name on the command line, and of its group of arguments there.
        summary: What it does, in a few words.
        callback: The callback that does it; None where it is an option of the stream, or nothing.
        needs_old_data: Whether data of earlier tasks is read.
    """

    name: str
    summary: str
    callback: type[Callback] | None = None
    needs_old_data: bool = False


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("finetune", "plain fine-tuning"),
        Method("joint", "training on all tasks at once, the upper reference", needs_old_data=True),
        Method("low_lr", "a lower learning rate after the first task", LowLearningRate),
        Method("l2", "L2 penalty towards the snapshot", L2ToSnapshot),
        Method("sfa", "uniform averaging in the loop", SequentialFinetuningAveraging),
        Method("wise_ft", "uniform averaging at a task's end", WiseFT),
        Method("ewc", "online elastic weight consolidation", ElasticWeightConsolidation),
        Method("lwf", "learning without forgetting: distillation", LearningWithoutForgetting),
        Method("replay", "experience replay from a buffer", needs_old_data=True),
        Method("hft", "half of the parameters frozen in each task", HalfFineTuning),
        Method("adaptive", "uniform averaging at adaptive intervals", AdaptiveInterval),
        Method("recall_paper", "the paper's RECALL at a task's end", RecallPaper),
        Method("recall_paper_loop", "the paper's RECALL in the loop", RecallPaperLoop),
        Method("recall", "RecallCallback", RecallCallback),
    )
}

KEEPS_FIRST = {
    "recall": "merge_first_task",
    "sfa": "merge_first_task",
    "wise_ft": "merge_first_task",
    "adaptive": "merge_first_task",
    "recall_paper": "merge_first_task",
    "recall_paper_loop": "merge_first_task",
    "low_lr": "from_first_task",
    "l2": "from_first_task",
    "ewc": "from_first_task",
    "lwf": "from_first_task",
    "hft": "from_first_task",
}
"""The argument of each that says whether what the model knows before its first task is kept."""


def give_old_data(
    method: str, datamodule: LightningDataModule | None, replay: ReplayBuffer
) -> None:
    """Set the stream's option where a method is one.

    Args:
        method: A method's name.
        datamodule: The stream.
        replay: What the method ``replay`` gives the stream.

    Raises:
        MisconfigurationException: If the method needs a TaskStream and ``datamodule`` is none.
    """
    if method not in ("joint", "replay"):
        return
    if not isinstance(datamodule, TaskStream):
        raise MisconfigurationException(
            f"method={method!r} reads data of other tasks, which only a TaskStream can give: the "
            f"data is {type(datamodule).__name__}"
        )
    if method == "joint":
        datamodule.joint = True
    else:
        datamodule.replay = replay
