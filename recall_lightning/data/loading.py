"""A dataloader that goes on in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from recall_lightning.data.sampling import SeededSampler


class ResumableLoader(DataLoader[Any]):
    """A loader of one epoch whose position Lightning saves and restores with a checkpoint.

    It need not count: how many batches were trained the Trainer knows, and what it asks for ahead
    of training is not among them. A restored loader leaves out that many, without reading them
    where the sampler is a :class:`~recall_lightning.data.sampling.SeededSampler`; its length stays
    the epoch's. What worker processes draw at random starts anew with them.

    Example::

        >>> sampler = SeededSampler(range(6), seed=0)
        >>> loader = ResumableLoader(range(6), epoch=3, batch_size=2, sampler=sampler)
        >>> whole = [batch.tolist() for batch in loader]
        >>> loader.load_state_dict({"epoch": 3, "batches": 2})
        >>> [batch.tolist() for batch in loader] == whole[2:], len(loader)
        (True, 3)

    Args:
        *args: Those of ``DataLoader``.
        epoch: The epoch whose order this is. The position in another one is not restored.
        trained_batches: Tells how many of its batches were trained.
        **kwargs: Those of ``DataLoader``.
    """

    def __init__(
        self,
        *args: Any,
        epoch: int = 0,
        trained_batches: Callable[[], int] = int,
        **kwargs: Any,
    ) -> None:
        self.epoch = epoch
        self.trained_batches = trained_batches
        self._trained = 0
        super().__init__(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were trained, and what decides its order."""
        return {"epoch": self.epoch, "batches": self.trained_batches(), "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the loader stood whose state this is.

        Raises:
            MisconfigurationException: If that is in the midst of the epoch, and its batches are no
                longer the same: samples would be trained twice or never.
        """
        self._trained = state_dict["batches"] if state_dict["epoch"] == self.epoch else 0
        now, then = self._order(), state_dict.get("order")  # older checkpoints have none
        if then is None or not self._trained or self._trained == then["batches"]:
            return
        changed = [
            f"{name} {now[name]!r} for {then[name]!r}"
            for name in now
            if name in then and now[name] != then[name]
        ]
        if changed:
            raise MisconfigurationException(
                f"the checkpoint stands after {self._trained} batches of epoch {self.epoch} (from "
                f"0), and the epoch's batches are others now ({', '.join(changed)}): samples would "
                "be trained twice or never; resume with what it was written with, or from a "
                "checkpoint at an epoch's end"
            )

    def _order(self) -> dict[str, Any]:
        """What decides which samples are in which batch."""
        sampler = self.sampler if isinstance(self.sampler, SeededSampler) else None
        # two processes that train 4 samples each train the 8 that one would
        processes = self._processes() if sampler is None else sampler.num_replicas
        return {
            "batches": None if isinstance(self.dataset, IterableDataset) else len(self),
            "batch_size": None if self.batch_size is None else self.batch_size * processes,
            "samples": None if sampler is None else len(sampler.dataset),  # type: ignore[arg-type]
            "seed": None if sampler is None else sampler.seed,
            "dataset": type(self.dataset).__name__,
            "readers": self._readers(),
        }

    def _processes(self) -> int:
        """How many processes share rows that have no index."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        shared = distributed and isinstance(self.dataset, IterableDataset)
        return torch.distributed.get_world_size() if shared else 1

    def _readers(self) -> int | None:
        """How many workers deal rows out that have no index; None where they have one.

        A single one of each process makes the batches that the process itself would.
        """
        if not isinstance(self.dataset, IterableDataset):
            return None
        return self.num_workers * self._processes() if self.num_workers > 1 else 1

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches that were not trained yet."""
        if self.generator is not None:  # workers get the same seeds however often this is called
            self.generator.manual_seed(self.generator.initial_seed())
        if isinstance(self.sampler, SeededSampler) and self.batch_size is not None:
            self.sampler.skipped = self._trained * self.batch_size
            return super().__iter__()
        batches = super().__iter__()
        return islice(batches, self._trained, None) if self._trained else batches
