"""The last batches that were trained."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from recall_lightning.measuring.batches import detached, only_tensors, rebuild, tensors_of
from recall_lightning.measuring.view import ModelView
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.weights.sharding import of_all_processes, of_this_process


class RecentBatchesState(TypedDict):
    """What a checkpoint holds of them: of each process, the tensors of each batch."""

    processes: list[list[list[torch.Tensor] | None]]


class RecentBatches(Statistic):
    """The last few batches of a running task, on which other statistics run the model.

    They are in memory, and in the checkpoints that are written while the task runs as far as they
    are tensors, so that a run that resumes measures on the same. When the task ends they are
    forgotten: no later checkpoint has one.

    Args:
        number: How many to keep, 1 or more.
        in_checkpoints: Whether checkpoints hold them. Without, a run that resumes measures on those
            that it trains itself.
        in_memory: Whether they are kept at all.

    Attributes:
        spare: How many more are kept before those, for :meth:`go_back`.

    Example:
        >>> recent = RecentBatches(2)
        >>> for batch in range(3):
        ...     recent.keep(torch.tensor(batch))
        >>> recent.batches
        [tensor(1), tensor(2)]
    """

    name = "recent_batches"
    form = RecentBatchesState

    def __init__(self, number: int, in_checkpoints: bool = True, in_memory: bool = True) -> None:
        self.number = number
        self.in_checkpoints = in_checkpoints
        self.spare = 0
        self._in_memory = in_memory
        self._kept: deque[Any] = deque()
        self._told = False  # that batches are left out of checkpoints
        self._restored: list[list[torch.Tensor] | None] = []  # until a batch shows their structure

    @property
    def most(self) -> int:
        """How many are kept at most."""
        return self._in_memory * self.number

    @property
    def batches(self) -> list[Any]:
        """Those that are kept, oldest first."""
        return list(self._kept)[-self.number :]

    def go_back(self, batches: int) -> None:
        """Forget the newest ones, so that the last are those from before them.

        Args:
            batches: How many, at most :attr:`spare`.
        """
        for _ in range(min(batches, len(self._kept))):
            self._kept.pop()

    def start_task(self, context: TaskContext) -> None:
        """Forget those of the last task."""
        self.forget_samples()

    def forget_samples(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._restored = []

    def complete(self, context: TaskContext, batch: Any) -> None:
        """Rebuild what a checkpoint held."""
        self._rebuild(batch)

    def observe_batch(self, context: TaskContext, batch: Any) -> None:
        """Keep a training batch in place of the oldest."""
        self.keep(batch)

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return the bytes of as many batches as are kept, of the size of this one."""
        return {"last batches": self.most * batch_bytes(batch)}

    def keep(self, batch: Any) -> None:
        """Keep a batch in place of the oldest; say so where checkpoints will leave it out."""
        if self.in_checkpoints and not self._told and only_tensors(batch) is None:
            self._told = True
            rank_zero_warn(
                "training batches hold other things than tensors, so checkpoints leave the last "
                f"{self.number} of them out: a run that resumes measures on those it trains itself"
            )
        self._rebuild(batch)
        if self._in_memory:
            self._kept.append(detached(batch))  # a training_step may change its batch
            while len(self._kept) > self.number + self.spare:
                self._kept.popleft()

    def _rebuild(self, batch: Any) -> None:
        if self._restored and None not in self._restored:
            restored = [rebuild(batch, tensors or []) for tensors in self._restored]
            self._kept.extend(restored if self._in_memory else [])
        self._restored = []

    def resume(self, context: TaskContext) -> None:
        """After a resume, move what the checkpoint held to the module's device."""
        self._restored = move_data_to_device(self._restored, context.pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """Return each process's batches, if checkpoints hold them and they are tensors alone."""
        own = self._restored or [only_tensors(batch) for batch in self._kept]
        own = own if self.in_checkpoints else []
        return {"processes": of_all_processes(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, which the next batch makes usable."""
        self._kept.clear()
        self._restored = of_this_process(state_dict["processes"]) if self.in_checkpoints else []


def batch_bytes(batch: Any) -> int:
    """Return the bytes of a batch's tensors.

    >>> batch_bytes({"inputs": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.long)})
    40
    """
    return sum(tensor.nbytes for tensor in tensors_of(batch))


def last_with(batches: Sequence[Any], labels: int, view: ModelView) -> list[Any]:
    """Return as many of the last batches as hold so many labels, or all.

    Example:
        >>> batches = [(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)) for _ in range(4)]
        >>> len(last_with(batches, 10, ModelView()))
        2
    """
    chosen: list[Any] = []
    seen = 0
    for batch in reversed(batches):
        if seen >= labels:
            break
        chosen.insert(0, batch)
        targets = view.targets(batch)
        if not targets and isinstance(batch, Mapping) and "input_ids" in batch:
            targets = [batch["input_ids"]]
        classes = [each.numel() for each in targets if not each.is_floating_point()]
        seen += max(classes, default=0)
    return chosen
