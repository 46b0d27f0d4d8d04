"""Known ways of forgetting less, one a file, and the table of them.

A file holds a method's callback, if it has one, and the record by which the command line knows it,
a :class:`~recall_lightning.methods.method.Method`.
"""

from typing import TYPE_CHECKING

from recall_lightning._lazily import lazily

if TYPE_CHECKING:
    from recall_lightning.methods.adaptive import AdaptiveInterval
    from recall_lightning.methods.ewc import ElasticWeightConsolidation
    from recall_lightning.methods.ewc_lora import UpdateConsolidation
    from recall_lightning.methods.finch import Finch
    from recall_lightning.methods.hft import HalfFineTuning
    from recall_lightning.methods.kfac_penalty import KfacPenalty
    from recall_lightning.methods.l2 import L2ToSnapshot
    from recall_lightning.methods.low_lr import LowLearningRate
    from recall_lightning.methods.lwf import LearningWithoutForgetting
    from recall_lightning.methods.osf import OrthogonalSubspace
    from recall_lightning.methods.recall_paper import RecallPaper
    from recall_lightning.methods.self_replay import SelfReplay
    from recall_lightning.methods.sfa import SequentialFinetuningAveraging
    from recall_lightning.methods.slao import Slao
    from recall_lightning.methods.wise_ft import WiseFT

FILES = {
    "finetune": "finetune",
    "joint": "joint",
    "low_lr": "low_lr",
    "l2": "l2",
    "sfa": "sfa",
    "wise_ft": "wise_ft",
    "ewc": "ewc",
    "ewc_lora": "ewc_lora",
    "kfac_penalty": "kfac_penalty",
    "lwf": "lwf",
    "self_replay": "self_replay",
    "replay": "replay",
    "finch": "finch",
    "slao": "slao",
    "osf": "osf",
    "hft": "hft",
    "adaptive": "adaptive",
    "recall_paper": "recall_paper",
    "recall_paper_loop": "recall_paper",
    "recall": "recall",
}
"""Each method's file by its name, in the order of tables; nothing is imported to know the names."""

__all__ = [
    "FILES",
    "AdaptiveInterval",
    "ElasticWeightConsolidation",
    "Finch",
    "HalfFineTuning",
    "KfacPenalty",
    "L2ToSnapshot",
    "LearningWithoutForgetting",
    "LowLearningRate",
    "OrthogonalSubspace",
    "RecallPaper",
    "SelfReplay",
    "SequentialFinetuningAveraging",
    "Slao",
    "UpdateConsolidation",
    "WiseFT",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AdaptiveInterval": "adaptive",
        "ElasticWeightConsolidation": "ewc",
        "Finch": "finch",
        "HalfFineTuning": "hft",
        "KfacPenalty": "kfac_penalty",
        "L2ToSnapshot": "l2",
        "LearningWithoutForgetting": "lwf",
        "LowLearningRate": "low_lr",
        "OrthogonalSubspace": "osf",
        "RecallPaper": "recall_paper",
        "SelfReplay": "self_replay",
        "SequentialFinetuningAveraging": "sfa",
        "Slao": "slao",
        "UpdateConsolidation": "ewc_lora",
        "WiseFT": "wise_ft",
    },
)
