"""Ordered tasks behind one LightningDataModule."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Sized
from itertools import accumulate, pairwise
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset

from recall_lightning.data.held_out import with_validation
from recall_lightning.data.loading import ResumableLoader
from recall_lightning.data.replay import ReplayBuffer, StoredSamples
from recall_lightning.data.sampling import ReplaySampler, SeededSampler, draw_jointly, mix_seed


class TaskStream(LightningDataModule, ABC):
    """A stream of tasks, trained one after the other by a single ``trainer.fit``.

    Epochs are dealt out to tasks in order: task 0 has the first ``epochs_per_task`` epochs, task 1
    the next, and so on. The training loader is that of the current epoch's task. The validation
    loaders are those of *all* tasks, in order and from the first epoch on, so that metric names
    stay the same throughout and tasks can be scored before they have been trained.

    Subclasses implement :attr:`task_names`, :meth:`train_dataset` and :meth:`val_dataset`;
    :meth:`from_datasets` makes a stream of datasets that are already there.

    The order of training samples depends on ``seed`` and the epoch alone, and a checkpoint holds
    how far an epoch has come, so a run that resumes sees what an uninterrupted one would have seen.
    Neither building nor iterating a loader draws from the global random number generator.

    Note:
        The trainer must ask for a new loader every epoch, and train as many epochs as the stream
        has: ``Trainer(reload_dataloaders_every_n_epochs=1, max_epochs=stream.total_epochs)``.

        With a distributed strategy each process trains on its own part of the same order, as
        with Lightning's ``DistributedSampler``; ``Trainer(use_distributed_sampler=False)`` gives
        every process all of it. Held-out rows are parted by Lightning: where the processes do not
        divide them, the first few count twice in every score; ``trainer.validate`` in one process
        counts each once.

        Continual training reads no data of earlier tasks. ``joint`` and ``replay`` do: they are
        what it is compared with.

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
        epochs_per_task: Epochs of every task, or one number a task; where tasks come back, one
            number for each of their turns.
        batch_size: Samples in a training batch.
        eval_batch_size: Samples in a validation batch. Defaults to ``batch_size``.
        num_workers: Worker processes of each loader.
        seed: Seed of the order of samples, and of whatever a subclass draws.
        collate_fn: How samples become a batch. Defaults to that of ``DataLoader``.
        drop_last: Whether to leave out the last training batch where it is smaller than the rest.
        joint: Whether every epoch trains on all tasks at once: on a random sample, without
            replacement and another one each epoch, of all training sets together. It is as large as
            the epoch's own task, so there are as many optimizer steps as in sequential training.
        replay: Samples of earlier tasks to store and to train on with each batch of the current
            one: experience replay.
        order: The tasks in the order of training, by index from 0, where some come back:
            ``[0, 1, 0, 1]``. By default each is trained once, in the order of their names.

    Raises:
        MisconfigurationException: If ``epochs_per_task`` or a batch size is not a positive integer,
            both ``joint`` and ``replay`` are asked for, or ``order`` does not train every task, or
            one twice in a row.
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
        joint: bool = False,
        replay: ReplayBuffer | None = None,
        order: Sequence[int] | None = None,
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
        self.joint = joint
        self.replay = replay
        self._check_joint_or_replay()
        self._order = order
        self._stored: tuple[ReplayBuffer, int, StoredSamples] | None = None
        self._datasets: dict[tuple[str, int], Dataset[Any]] = {}
        self._shortened: dict[int, int] = {}  # turn to its epochs, where it ended early

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

    @property
    def probe_names(self) -> list[str]:
        """Names of held-out sets that belong to no task: what a model could do before any."""
        return []

    def probe_dataset(self, probe: int) -> Dataset[Any]:
        """Data of a set of :attr:`probe_names`. The loaders call this once and keep the answer."""
        raise NotImplementedError

    # --- which task an epoch belongs to ---------------------------------------------------------

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.task_names)

    @property
    def order(self) -> list[int]:
        """The tasks in the order of training, by index; one that comes back stands there again.

        Raises:
            MisconfigurationException: If it leaves a task out, or has one twice in a row.
        """
        tasks = list(range(self.num_tasks))
        given = tasks if self._order is None else list(self._order)
        # numpy's and torch's numbers would be in checkpoints, which load plain ones alone
        order = [operator.index(each) for each in given if hasattr(each, "__index__")]
        in_a_row = any(one == other for one, other in pairwise(order))
        if sorted(set(order)) != tasks or in_a_row or len(order) < len(given):
            raise MisconfigurationException(
                f"order={given} must hold each of the tasks' indices, 0 to {len(tasks) - 1}, and"
                " none twice in a row: give such a task more epochs instead."
            )
        return order

    @property
    def epochs_per_task(self) -> list[int]:
        """Epochs of each turn of a task; of one that was ended early, those that it had.

        Raises:
            MisconfigurationException: If the task names, or their number, are not valid.
        """
        names, epochs = self.task_names, self._epochs_per_task
        every = [*names, *self.probe_names]
        if not names or len({*every}) < len(every) or not all(isinstance(n, str) for n in every):
            raise MisconfigurationException(
                f"task_names={every} must be texts, unique, and not empty."
            )
        turns = [names[task] for task in self.order]
        if not isinstance(epochs, int) and len(epochs) != len(turns):
            raise MisconfigurationException(
                f"epochs_per_task={list(epochs)} has {len(epochs)} entries, but the stream has"
                f" {len(turns)} tasks: {turns}. Give one number for each, or a single one for all."
            )
        planned = [epochs] * len(turns) if isinstance(epochs, int) else epochs
        return [self._shortened.get(turn, epochs) for turn, epochs in enumerate(planned)]

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole stream: what ``Trainer(max_epochs=...)`` should be."""
        return sum(self.epochs_per_task)

    @property
    def first_epochs(self) -> list[int]:
        """The epoch at which each turn of a task begins."""
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
        return self.order[self._turn_at(epoch)]

    def _turn_at(self, epoch: int) -> int:
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative.")
        return bisect_right(self.first_epochs, epoch) - 1

    def end_task_after(self, epoch: int) -> int:
        """Let a task end with ``epoch`` instead of later; the tasks after it move up.

        The Trainer's ``max_epochs`` goes down by as much. A checkpoint holds it.

        Args:
            epoch: An epoch of the trainer, counted from 0, which becomes its task's last.

        Returns:
            How many epochs fewer the stream has.

        Example::

            >>> from torch.utils.data import TensorDataset
            >>> data = [TensorDataset(torch.zeros(20, 3)), TensorDataset(torch.ones(20, 3))]
            >>> stream = TaskStream.from_datasets(data, epochs_per_task=5)
            >>> stream.end_task_after(1), stream.first_epochs, stream.total_epochs
            (3, [0, 2], 7)
        """
        turn = self._turn_at(epoch)
        before, first = self.epochs_per_task[turn], self.first_epochs[turn]
        if epoch - first + 1 >= before:
            return 0
        self._shortened[turn] = epoch - first + 1
        saved = before - self._shortened[turn]
        self._stop_earlier_by(saved)
        return saved

    def state_dict(self) -> dict[str, Any]:
        """Return which tasks have ended early."""
        return {"shortened": dict(self._shortened)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        planned = self.total_epochs
        self._shortened = dict(state_dict["shortened"])
        self._stop_earlier_by(planned - self.total_epochs)

    def _stop_earlier_by(self, epochs: int) -> None:
        if self.trainer is not None and (self.trainer.max_epochs or -1) > 0:
            self.trainer.fit_loop.max_epochs -= epochs  # type: ignore[operator]

    def check_training_data(self) -> None:
        """Look into every task's training data before anything runs; by default there is nothing.

        A subclass whose data can be missing says so here, and not when the task starts.
        """

    # --- Lightning's hooks ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the trainer against the stream. A subclass that overrides this calls it too.

        Raises:
            MisconfigurationException: If the trainer would serve the wrong task, or stop before the
                stream's end, or ``joint`` or ``replay`` cannot be done.
        """
        total = self.total_epochs  # names and epochs are checked at every stage
        if stage != "fit":
            return
        self._check_joint_or_replay()
        self.check_training_data()
        if self.joint or self.replay is not None:
            for task in range(self.num_tasks):
                self._sized_dataset(task)
        if self.trainer is None:
            return
        if self.replay is not None and self.trainer.world_size > 1:
            raise MisconfigurationException(
                f"replay composes its batches in one process, and the Trainer has"
                f" {self.trainer.world_size}: set Trainer(devices=1)."
            )
        reload = self.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        if reload != 1:
            raise MisconfigurationException(
                f"reload_dataloaders_every_n_epochs={reload} would train on the wrong task."
                " Set Trainer(reload_dataloaders_every_n_epochs=1)."
            )
        if self.num_tasks > 1 and getattr(self.trainer, "early_stopping_callbacks", []):
            rank_zero_warn(
                "Lightning's EarlyStopping ends the whole stream, not the task that has stopped"
                " improving, and compares scores of different tasks: use TaskEarlyStopping from"
                " recall_lightning.callbacks.early_stopping."
            )
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        max_epochs = self.trainer.max_epochs  # by now Lightning has put a number in None's place
        if max_epochs is None or max_epochs == -1:
            return
        if max_epochs < total:
            epochs = ", ".join(map(str, self.epochs_per_task))
            raise MisconfigurationException(
                f"max_epochs={max_epochs} does not cover the stream: {len(self.order)} tasks of"
                f" {epochs} epochs need {total}. Set Trainer(max_epochs={total})."
            )
        if max_epochs > total:
            rank_zero_warn(
                f"max_epochs={max_epochs} is more than the stream's {total} epochs:"
                f" the last task, '{self.task_names[self.order[-1]]}', goes on until then."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the current epoch's task. Before there is a trainer, that is epoch 0."""
        # Lightning may call this with a stale epoch when it resumes, so nothing is remembered here.
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        task, seed = self.task_at(epoch), mix_seed(self.seed, epoch)
        self._check_joint_or_replay()
        turn = self._turn_at(epoch)
        if self.replay is not None and turn > 0:
            return self._replaying_loader(task, turn, epoch, seed)
        dataset = self._dataset("train", task)
        if self.joint:
            datasets = [self._sized_dataset(each) for each in range(self.num_tasks)]
            # another seed than the sampler's, or one permutation would be applied twice
            dataset = draw_jointly(datasets, len(datasets[task]), mix_seed(self.seed, -1 - epoch))  # type: ignore[arg-type]
        sampler = None
        if not isinstance(dataset, IterableDataset):
            sampler = SeededSampler(dataset, seed, **self._processes())  # type: ignore[arg-type]
        return self._training_loader(dataset, epoch, seed, self.batch_size, sampler)

    def stored_samples(self, turn: int) -> StoredSamples | None:
        """What the replay buffer holds in a turn of a task: samples of all tasks trained before.

        Args:
            turn: Position in :attr:`order`, from 0: the task's index where none comes back. Its
                length stands for the time after the last one.

        Returns:
            The samples, or None where nothing is replayed: in the first turn, or without
            ``replay``.
        """
        if self.replay is None or turn == 0:
            return None
        if self._stored is None or self._stored[:2] != (self.replay, turn):
            earlier = [self._sized_dataset(each) for each in dict.fromkeys(self.order[:turn])]
            self._stored = self.replay, turn, self.replay.after(earlier, self.seed)
        return self._stored[2]

    def _replaying_loader(self, task: int, turn: int, epoch: int, seed: int) -> DataLoader[Any]:
        stored, new = self.stored_samples(turn), self._sized_dataset(task)
        assert self.replay is not None
        assert stored is not None
        replayed = min(self.replay.batch_size or self.batch_size, len(stored))
        # The new samples come first: indices into them stay what they are in the task's dataset.
        sampler = ReplaySampler(new, stored, self.batch_size, replayed, seed)  # type: ignore[arg-type]
        together: ConcatDataset[Any] = ConcatDataset([new, stored])
        return self._training_loader(together, epoch, seed, self.batch_size + replayed, sampler)

    def _training_loader(
        self,
        dataset: Dataset[Any],
        epoch: int,
        seed: int,
        batch_size: int,
        sampler: SeededSampler | None,
    ) -> DataLoader[Any]:
        return ResumableLoader(
            dataset,
            epoch=epoch,
            trained_batches=self._trained_batches,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=self.drop_last,
            **self._common(seed),
        )

    def _trained_batches(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]

    def _processes(self) -> dict[str, int]:
        """How many processes share the training set, and which of them this is."""
        processes = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        if processes is None or not self.trainer._accelerator_connector.use_distributed_sampler:  # type: ignore[union-attr]
            return {}
        return processes

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each task, in order, never shuffled; behind them those of the probes."""
        tasks = [self._dataset("val", task) for task in range(self.num_tasks)]
        probes = [self._dataset("probe", probe) for probe in range(len(self.probe_names))]
        return [
            DataLoader(dataset, batch_size=self.eval_batch_size, **self._common(self.seed))
            for dataset in [*tasks, *probes]
        ]

    def _common(self, seed: int) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": self.collate_fn,
            # without one, a loader seeds its workers from the global generator
            "generator": torch.Generator().manual_seed(seed),
        }

    def _dataset(self, split: str, task: int) -> Dataset[Any]:
        if (split, task) not in self._datasets:
            build = {
                "train": self.train_dataset,
                "val": self.val_dataset,
                "probe": self.probe_dataset,
            }
            self._datasets[split, task] = build[split](task)
        return self._datasets[split, task]

    def _sized_dataset(self, task: int) -> Dataset[Any]:
        """The training set of a task, of which samples can be drawn."""
        dataset = self._dataset("train", task)
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            option = "joint=True" if self.joint else "replay"
            raise MisconfigurationException(
                f"{option} draws samples by their index, and the training set of the task"
                f" '{self.task_names[task]}', {type(dataset).__name__}, has no length or no order:"
                " give it a map-style dataset."
            )
        return dataset

    def _check_joint_or_replay(self) -> None:
        if self.joint and self.replay is not None:
            raise MisconfigurationException(
                f"joint=True and replay={self.replay} exclude each other: joint training has all"
                " samples of all tasks already."
            )

    @classmethod
    def from_datasets(  # type: ignore[override]  # a stream cannot do with one training set
        cls,
        datasets: Sequence[Dataset[Any] | tuple[Dataset[Any], Dataset[Any]]],
        names: Sequence[str] | None = None,
        val_fraction: float = 0.1,
        probes: Mapping[str, Dataset[Any]] | None = None,
        **kwargs: Any,
    ) -> TaskStream:
        """A stream of datasets that are already there.

        Args:
            datasets: For each task a ``(train, validation)`` tuple, or a single map-style dataset,
                of which a part is then held out for validation.
            names: Names of the tasks. Defaults to ``"task 0"``, ``"task 1"``, ...
            val_fraction: The part that is held out of a single dataset, between 0 and 1. Which
                samples are held out depends on ``seed`` alone.
            probes: Held-out data by name that belongs to no task, of what a model could do before
                any: validated behind the tasks' and never trained.
            **kwargs: Arguments of :class:`TaskStream`.

        Raises:
            MisconfigurationException: If names and datasets differ in number, or nothing can be
                held out.
        """
        names = [f"task {i}" for i in range(len(datasets))] if names is None else list(names)
        if len(names) != len(datasets):
            raise MisconfigurationException(
                f"{len(names)} names were given for {len(datasets)} datasets, {names}: give one "
                "for each."
            )
        seed = kwargs.get("seed", 0)
        pairs = [with_validation(entry, val_fraction, seed) for entry in datasets]
        return _DatasetStream(names, pairs, dict(probes or {}), **kwargs)


class _DatasetStream(TaskStream):
    """A stream of given datasets."""

    def __init__(
        self,
        names: list[str],
        pairs: list[tuple[Dataset[Any], Dataset[Any]]],
        probes: dict[str, Dataset[Any]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._names = names
        self._pairs = pairs
        self._probes = probes
        _ = self.total_epochs  # checks names and epochs now rather than in setup
        for name, (train, _) in zip(names, pairs, strict=True):
            least = self.batch_size if self.drop_last else 1
            if isinstance(train, Sized) and len(train) < least:
                raise MisconfigurationException(
                    f"the task '{name}' has {len(train)} training samples, which make no batch, and"
                    " Lightning would end training there: give it data, or leave it out."
                )

    @property
    def task_names(self) -> list[str]:
        return self._names

    def train_dataset(self, task: int) -> Dataset[Any]:
        return self._pairs[task][0]

    def val_dataset(self, task: int) -> Dataset[Any]:
        return self._pairs[task][1]

    @property
    def probe_names(self) -> list[str]:
        return list(self._probes)

    def probe_dataset(self, probe: int) -> Dataset[Any]:
        return self._probes[self.probe_names[probe]]


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
