"""Streams in which one task goes over into the next by and by."""

from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader

from recall_lightning.data.digits import DigitsStream
from recall_lightning.data.sampling import mix_seed
from recall_lightning.data.stream import TaskStream

FADE = 0.1  # of a task


def order(
    own: int, around: tuple[int, int], first: int, task_samples: int, fade: float, seed: int
) -> list[int]:
    """Draw an epoch's samples, as indices into this task's, then the last one's, then the next's.

    The share of another task falls from one half, at the boundary, to none over a part of the task.

    Args:
        own: Samples of the task, of which as many are drawn.
        around: Samples of the task before and of the one after; 0 without one.
        first: Samples of the task that earlier epochs had.
        task_samples: Samples that the whole task has.
        fade: The part of the task that the share takes to fall, in (0, 1/2].
        seed: Of the draw.

    Example:
        >>> drawn = order(100, (0, 50), 0, 100, 0.5, seed=0)
        >>> [sum(index >= 100 for index in drawn[half : half + 50]) for half in (0, 50)]
        [0, 13]
    """
    before, after = around
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(own, generator=generator).tolist()
    chances = torch.rand(own, generator=generator).tolist()
    for place in range(own):
        done = (first + place + 0.5) / task_samples
        if before and chances[place] < 0.5 - done / fade / 2:
            drawn[place] = own + int(torch.randint(before, (), generator=generator))
        elif after and chances[place] < 0.5 - (1 - done) / fade / 2:
            drawn[place] = own + before + int(torch.randint(after, (), generator=generator))
    return drawn


class Gradual(TaskStream):
    """Has a tenth of every task go over into it from the one before, and a tenth into the next."""

    def train_dataloader(self) -> DataLoader[Any]:
        """The epoch's samples in the order in which they are drawn."""
        if self.joint:
            return super().train_dataloader()
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        task, last = self.task_at(epoch), self.total_epochs - 1
        first = self.first_epochs[task]
        epochs = self.epochs_per_task[task]
        own = self._sized_dataset(task)
        before = [self._sized_dataset(task - 1)] if first else []
        after = [self._sized_dataset(task + 1)] if first + epochs <= last else []
        number, around = len(own), (sum(map(len, before)), sum(map(len, after)))  # type: ignore[arg-type]
        done, seed = (epoch - first) * number, mix_seed(self.seed, epoch)
        drawn = order(number, around, done, epochs * number, FADE, seed)
        together: ConcatDataset[Any] = ConcatDataset([own, *before, *after])
        return DataLoader(
            together, self.batch_size, sampler=drawn, collate_fn=self.collate_fn, drop_last=True
        )


class GradualDigits(Gradual, DigitsStream):
    """Digits."""
