"""Ordered tasks behind one LightningDataModule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, random_split


class TaskStream(LightningDataModule, ABC):
    """A stream of tasks, trained one after the other by a single ``trainer.fit``.

    Epochs are dealt out to tasks in order: task 0 has the first ``epochs_per_task`` epochs, task 1
    the next, and so on. The training loader is that of the current epoch's task. The validation
    loaders are those of *all* tasks, in order and from the first epoch on, so that metric names
    stay the same throughout and tasks can be scored before they have been trained.

    Subclasses implement :attr:`task_names`, :meth:`train_dataset` and :meth:`val_dataset`;
    :meth:`from_datasets` makes a stream of datasets that are already there.

    The order of training samples depends on ``seed`` and the epoch alone, so a run that resumes at
    the end of an epoch sees what an uninterrupted one would have seen. Neither building nor
    iterating a loader draws from the global random number generator.

    Note:
        The trainer must ask for a new loader every epoch, and train as many epochs as the stream
        has: ``Trainer(reload_dataloaders_every_n_epochs=1, max_epochs=stream.total_epochs)``.

        With a distributed strategy, Lightning puts a ``DistributedSampler`` in the place of the
        stream's own; order then depends on the seed of ``seed_everything`` and the epoch.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from torch.utils.data import TensorDataset
        >>> a, b = TensorDataset(torch.zeros(20, 3)), TensorDataset(torch.ones(20, 3))
        >>> stream = TaskStream.from_datasets([a, b], ["zeros", "ones"], epochs_per_task=[1, 2])
        >>> stream.first_epochs, stream.total_epochs
        ([0, 1], 3)
        >>> [stream.task_at(epoch) for epoch in range(4)]
        [0, 1, 1, 1]
        >>> trainer = Trainer(
        ...     max_epochs=stream.total_epochs, reload_dataloaders_every_n_epochs=1
        ... )  # doctest: +SKIP
        >>> trainer.fit(model, datamodule=stream)  # doctest: +SKIP

    Args:
        epochs_per_task: Epochs of every task, or one number a task.
        batch_size: Samples in a training batch.
        eval_batch_size: Samples in a validation batch. Defaults to ``batch_size``.
        num_workers: Worker processes of each loader.
        seed: Seed of the order of samples, and of whatever a subclass draws.
        collate_fn: How samples become a batch. Defaults to that of ``DataLoader``.
        drop_last: Whether to leave out the last training batch where it is smaller than the rest.

    Raises:
        MisconfigurationException: If ``epochs_per_task`` or a batch size is not a positive integer.
    """

    def __init__(
        self,
        *,
        epochs_per_task: int | Sequence[int] = 1,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and not _is_positive_int(size):
                raise MisconfigurationException(f"{name}={size!r} must be an integer of 1 or more.")
        listed = epochs_per_task if isinstance(epochs_per_task, Sequence) else [epochs_per_task]
        if not all(map(_is_positive_int, listed)):
            raise MisconfigurationException(
                f"epochs_per_task={epochs_per_task!r} must be an integer of 1 or more,"
                " or a list of those, one for each task."
            )
        self._epochs_per_task = epochs_per_task
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self._datasets: dict[tuple[str, int], Dataset[Any]] = {}

    # --- what a subclass provides ---------------------------------------------------------------

    @property
    @abstractmethod
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of training: unique, and at least one."""

    @abstractmethod
    def train_dataset(self, task: int) -> Dataset[Any]:
        """Training data of ``task``. The loaders call this once and keep the answer."""

    @abstractmethod
    def val_dataset(self, task: int) -> Dataset[Any]:
        """Held-out data of ``task``. The loaders call this once and keep the answer."""

    # --- which task an epoch belongs to ---------------------------------------------------------

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.task_names)

    @property
    def epochs_per_task(self) -> list[int]:
        """Epochs of each task.

        Raises:
            MisconfigurationException: If the task names, or their number, are not valid.
        """
        names, epochs = self.task_names, self._epochs_per_task
        if not names or len(set(names)) < len(names):
            raise MisconfigurationException(f"task_names={names} must be unique, and not empty.")
        if isinstance(epochs, int):
            return [epochs] * len(names)
        if len(epochs) != len(names):
            raise MisconfigurationException(
                f"epochs_per_task={list(epochs)} has {len(epochs)} entries, but the stream has"
                f" {len(names)} tasks: {names}. Give one number for each, or a single one for all."
            )
        return list(epochs)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole stream: what ``Trainer(max_epochs=...)`` should be."""
        return sum(self.epochs_per_task)

    @property
    def first_epochs(self) -> list[int]:
        """The epoch at which each task begins."""
        return list(accumulate(self.epochs_per_task[:-1], initial=0))

    def task_at(self, epoch: int) -> int:
        """The task that ``epoch`` belongs to; after the stream's last epoch, the last task.

        Args:
            epoch: An epoch of the trainer, counted from 0.

        Returns:
            Index of the task, counted from 0.

        Raises:
            ValueError: If ``epoch`` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative.")
        return bisect_right(self.first_epochs, epoch) - 1

    # --- Lightning's hooks ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer against the stream. A subclass that overrides this calls it too.

        Raises:
            MisconfigurationException: If the trainer would serve the wrong task, or stop before the
                stream's end.
        """
        total = self.total_epochs  # names and epochs are checked at every stage
        if stage != "fit" or self.trainer is None:
            return
        reload = self.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if reload != 1:
            raise MisconfigurationException(
                f"reload_dataloaders_every_n_epochs={reload} would train on the wrong task."
                " Set Trainer(reload_dataloaders_every_n_epochs=1)."
            )
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        max_epochs = self.trainer.max_epochs  # by now Lightning has put a number in None's place
        if max_epochs is None or max_epochs == -1:
            return
        if max_epochs < total:
            epochs = ", ".join(map(str, self.epochs_per_task))
            raise MisconfigurationException(
                f"max_epochs={max_epochs} does not cover the stream: {self.num_tasks} tasks of"
                f" {epochs} epochs need {total}. Set Trainer(max_epochs={total})."
            )
        if max_epochs > total:
            rank_zero_warn(
                f"max_epochs={max_epochs} is more than the stream's {total} epochs:"
                f" the last task, '{self.task_names[-1]}', goes on until then."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the current epoch's task. Before there is a trainer, that is epoch 0."""
        # Lightning may call this with a stale epoch when it resumes, so nothing is remembered here.
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        dataset = self._dataset("train", self.task_at(epoch))
        seed = mix_seed(self.seed, epoch)
        sampler = None if isinstance(dataset, IterableDataset) else _SeededSampler(dataset, seed)  # type: ignore[arg-type]
        return self._loader(
            dataset, seed, batch_size=self.batch_size, sampler=sampler, drop_last=self.drop_last
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each task, in order, never shuffled."""
        return [
            self._loader(self._dataset("val", task), self.seed, batch_size=self.eval_batch_size)
            for task in range(self.num_tasks)
        ]

    def _loader(self, dataset: Dataset[Any], seed: int, **kwargs: Any) -> DataLoader[Any]:
        # A loader without a generator of its own seeds its workers from the global one.
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            generator=torch.Generator().manual_seed(seed),
            **kwargs,
        )

    def _dataset(self, split: str, task: int) -> Dataset[Any]:
        if (split, task) not in self._datasets:
            build = self.train_dataset if split == "train" else self.val_dataset
            self._datasets[split, task] = build(task)
        return self._datasets[split, task]

    @classmethod
    def from_datasets(  # type: ignore[override]  # a stream cannot do with one training set
        cls,
        datasets: Sequence[Dataset[Any] | tuple[Dataset[Any], Dataset[Any]]],
        names: Sequence[str] | None = None,
        val_fraction: float = 0.1,
        **kwargs: Any,
    ) -> TaskStream:
        """A stream of datasets that are already there.

        Args:
            datasets: For each task a ``(train, validation)`` tuple, or a single map-style dataset,
                of which a part is then held out for validation.
            names: Names of the tasks. Defaults to ``"task 0"``, ``"task 1"``, ...
            val_fraction: The part that is held out of a single dataset, between 0 and 1. Which
                samples are held out depends on ``seed`` alone.
            **kwargs: Arguments of :class:`TaskStream`.

        Raises:
            MisconfigurationException: If names and datasets differ in number, or nothing can be
                held out.
        """
        names = [f"task {i}" for i in range(len(datasets))] if names is None else list(names)
        if len(names) != len(datasets):
            raise MisconfigurationException(
                f"{len(names)} names were given for {len(datasets)} datasets: {names}."
            )
        seed = kwargs.get("seed", 0)
        return _DatasetStream(
            names, [_with_validation(entry, val_fraction, seed) for entry in datasets], **kwargs
        )


class _DatasetStream(TaskStream):
    """A stream of given datasets."""

    def __init__(
        self, names: list[str], pairs: list[tuple[Dataset[Any], Dataset[Any]]], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._names = names
        self._pairs = pairs
        _ = self.total_epochs  # checks names and epochs now rather than in setup

    @property
    def task_names(self) -> list[str]:
        return self._names

    def train_dataset(self, task: int) -> Dataset[Any]:
        return self._pairs[task][0]

    def val_dataset(self, task: int) -> Dataset[Any]:
        return self._pairs[task][1]


class _SeededSampler(RandomSampler):
    """A random order that is the same at every ``iter()``.

    It is a ``RandomSampler`` so that Lightning knows it may replace it by a ``DistributedSampler``.
    Its seed is its own, because Lightning calls ``iter()`` on a new loader twice, and a generator
    would have moved on by the second time.
    """

    def __init__(self, data_source: Sized, seed: int) -> None:
        super().__init__(data_source)
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(len(self.data_source), generator=generator).tolist())


def mix_seed(seed: int, index: int) -> int:
    """A seed for each pair of seed and epoch or task, in the 32 bits that a CPU generator reads."""
    # Not seed + index: epoch 1 of seed 0 would have the order of epoch 0 of seed 1.
    return (seed * 1_000_003 + index) % 2**32


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _with_validation(
    entry: Dataset[Any] | tuple[Dataset[Any], Dataset[Any]], val_fraction: float, seed: int
) -> tuple[Dataset[Any], Dataset[Any]]:
    """A ``(train, validation)`` pair of what was given for one task."""
    if isinstance(entry, tuple):
        if len(entry) != 2 or None in entry:
            raise MisconfigurationException(
                f"A tuple of {len(entry)} was given for a task; it must be two datasets,"
                " (train, validation)."
            )
        return entry
    if isinstance(entry, IterableDataset) or not isinstance(entry, Sized):
        raise MisconfigurationException(
            f"Nothing can be held out of {type(entry).__name__}, which has no length:"
            " pass a (train, validation) tuple."
        )
    held_out = round(len(entry) * val_fraction)
    if not 0 < held_out < len(entry):
        raise MisconfigurationException(
            f"val_fraction={val_fraction} holds {held_out} of {len(entry)} samples out: both"
            " training and validation need at least one."
        )
    generator = torch.Generator().manual_seed(seed)
    train, val = random_split(entry, [len(entry) - held_out, held_out], generator)
    return train, val
