"""The snapshots that a callback keeps from task to task."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from recall_lightning.merging.adapters import LoraPair
from recall_lightning.snapshots import Snapshot, frozen_digest, named_weights


class KeptSnapshots:
    """The last few tasks' snapshots, oldest first.

    Args:
        most: How many to keep, or ``"all"``.
        device: Where they live; None keeps each copy beside its weight.

    Attributes:
        snapshots: The snapshots.
        tasks: The task at whose start each was taken.
    """

    def __init__(self, most: int | Literal["all"], device: torch.device | None) -> None:
        self.most = most
        self.device = device
        self.snapshots: list[Snapshot] = []
        self.tasks: list[int] = []
        self._rest = ""

    def make_room(self, task: int) -> None:
        """Forget what will not be merged in ``task``, before its snapshot is taken.

        Those of this task or a later one are of another run.
        """
        earlier = sum(taken < task for taken in self.tasks)
        room = earlier if self.most == "all" else self.most - 1
        kept = slice(max(earlier - room, 0), earlier)
        self.snapshots, self.tasks = self.snapshots[kept], self.tasks[kept]

    def take(
        self, pl_module: LightningModule, task: int, lora_pairs: Sequence[LoraPair] = ()
    ) -> None:
        """Take the snapshot of a task's start.

        Earlier ones are dropped, with a warning, if they would mean something else by now: other
        weights are trained, frozen ones have changed (an adapter was merged into its base), or a
        LoRA scale has.

        Raises:
            ValueError: If there is nothing to copy, or it is not finite.
        """
        newest = Snapshot.take(pl_module, self.device)
        shapes = {name: tensor.shape for name, tensor in newest.items()}
        rest = ""
        if self.most != 1:
            rest = f"{frozen_digest(pl_module)} {[(p.module, p.scale) for p in lora_pairs]}"
        trained = all({n: t.shape for n, t in old.items()} == shapes for old in self.snapshots)
        if self.snapshots and not (trained and rest == self._rest):
            changed = "frozen weights or LoRA scales" if trained else "trainable weights"
            rank_zero_warn(
                f"the {changed} changed before task {task}: snapshots of earlier tasks no longer "
                "match them and are dropped"
            )
            self.snapshots, self.tasks = [], []
        self.snapshots.append(newest)
        self.tasks.append(task)
        self._rest = rest

    def to_devices_of(self, pl_module: LightningModule) -> None:
        """After a resume, move the copies to the device named, or beside their weights."""
        live = named_weights(pl_module)
        self.snapshots = [snapshot.to_devices_of(live, self.device) for snapshot in self.snapshots]

    def state_dict(self) -> dict[str, Any]:
        """Return plain dictionaries of tensors, and the tasks."""
        return {
            "tensors": [dict(snapshot) for snapshot in self.snapshots],
            "tasks": self.tasks,
            "rest": self._rest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.snapshots = [Snapshot(tensors) for tensors in state_dict["tensors"]]
        self.tasks = list(state_dict["tasks"])
        self._rest = state_dict["rest"]
