"""A merge rule, a method and a stream for recall-lightning."""

import torch
from torch.utils.data import TensorDataset

from recall_lightning import MergeRule, RecallCallback, TaskStream
from recall_lightning.methods.method import Method


class Gentle(MergeRule):
    """Every block takes the same share of the snapshot."""

    name = "gentle"

    def __init__(self, share: float = 0.25) -> None:
        super().__init__()
        self.share = share

    def coefficients(self, inputs):
        return {block.name: self.share for block in inputs.blocks}


class GentleFit(RecallCallback):
    """Merges gently, once a task.

    Args:
        share: How much of the snapshot.
        merge_first_task: Whether the weights before the first task are worth keeping.
    """

    def __init__(self, share: float = 0.25, merge_first_task: bool = True) -> None:
        super().__init__(every=1.0, rule=Gentle(share), merge_first_task=merge_first_task)


GENTLE_FIT = Method("gentle_fit", "the gentle rule", GentleFit, keeps_first="merge_first_task")


class CornersStream(TaskStream):
    """Two tasks: which corner of a square a point is nearest to, and the same turned.

    Args:
        samples: How many points a task.
        seed: Of the points and their order.
    """

    def __init__(self, samples: int = 32, seed: int = 0) -> None:
        super().__init__(batch_size=8, seed=seed)
        self.samples = samples

    @property
    def task_names(self):
        return ["upright", "turned"]

    def train_dataset(self, task):
        generator = torch.Generator().manual_seed(self.seed)
        points = torch.randn(self.samples, 2, generator=generator)
        corners = 2 * (points[:, 0] > 0).long() + (points[:, 1] > 0).long()
        return TensorDataset(points, (corners + task) % 4)

    val_dataset = train_dataset
