"""The snapshots that a callback keeps from task to task."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NotRequired, TypedDict

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from recall_lightning.checks import FormError
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.recall.settings import SnapshotSettings
from recall_lightning.recall.snapshot_storage import SnapshotStorage
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot, frozen_digest
from recall_lightning.weights.snapshot_file import FileReference, FileSnapshot


class ReferenceState(TypedDict):
    """What a checkpoint holds of a file."""

    folder: str
    name: str
    checksum: str
    nbytes: int
    weights: int


class SnapshotsState(TypedDict):
    """What a checkpoint holds of snapshots; an older one names no files, and tasks for visits."""

    tensors: list[dict[str, Tensor]]
    files: NotRequired[list[ReferenceState | None]]
    written: NotRequired[list[str]]
    elsewhere: NotRequired[list[str]]
    visits: NotRequired[list[int]]
    tasks: NotRequired[list[int]]
    rest: str
    next: NotRequired[dict[str, Tensor] | None]


class KeptSnapshots:
    """The last few tasks' snapshots, oldest first.

    Args:
        settings: How many to keep, where they live, and what happens if a checkpoint's file is not
            to be found.

    Attributes:
        snapshots: The snapshots.
        visits: The visit of a task at whose start each was taken, counted from 0.
        next: What the next one is a copy of, by name; None where that is the model.
    """

    def __init__(self, settings: SnapshotSettings) -> None:
        self.most = settings.number
        self.storage = SnapshotStorage(settings)
        self.on_missing = settings.on_missing
        self.snapshots: list[Snapshot] = []
        self.visits: list[int] = []
        self.next: Mapping[str, Tensor] | None = None
        self._rest = ""
        self._restored: list[FileReference | None] | None = None  # of snapshots yet to be found

    def make_room(self, visit: int) -> None:
        """Forget what will not be merged in a visit, before its snapshot is taken.

        Those of this visit or a later one are of another run.
        """
        earlier = sum(taken < visit for taken in self.visits)
        room = earlier if self.most == "all" else self.most - 1
        kept = slice(max(earlier - room, 0), earlier)
        self.snapshots, self.visits = self.snapshots[kept], self.visits[kept]

    def take(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        visit: int,
        lora_pairs: Sequence[LoraPair] = (),
    ) -> None:
        """Take the snapshot of the start of a task's visit.

        Earlier ones are dropped, with a warning, if they would mean something else by now: other
        weights are trained, frozen ones have changed (an adapter was merged into its base), or a
        LoRA scale has.

        Raises:
            ValueError: If there is nothing to copy, or it is not finite.
        """
        with _in_place(self.next, pl_module):
            newest = self.storage.take(trainer, pl_module, visit)
        self.next = None
        shapes = {name: tensor.shape for name, tensor in newest.items()}
        rest = _rest(trainer, pl_module, lora_pairs)
        trained = all({n: t.shape for n, t in old.items()} == shapes for old in self.snapshots)
        if self.snapshots and not (trained and rest == self._rest):
            changed = "frozen weights or LoRA scales" if trained else "trainable weights"
            rank_zero_warn(
                f"the {changed} changed before task {visit}: snapshots of earlier tasks no longer "
                "match them and are dropped"
            )
            self.snapshots, self.visits = [], []
        self.snapshots.append(newest)
        self.visits.append(visit)
        self._rest = rest
        self.storage.remove_unused(trainer, self.snapshots)

    def keep_next(self, tensors: Mapping[str, Tensor]) -> None:
        """Have the next snapshot be of these weights."""
        device = self.storage.device
        self.next = {name: tensor.to(device or tensor.device) for name, tensor in tensors.items()}

    def leave_out(self, visit: int | None) -> list[int]:
        """Forget the snapshot of a visit that is undone, if it is not the only one.

        The next task's is the same, and would count twice.

        Returns:
            Which are left, counted from 0.
        """
        if self.next is not None:  # it was of the task that is undone
            self.next = dict(self.snapshots[-1])
        several = len(self.visits) > 1
        left = [n for n, taken in enumerate(self.visits) if not several or taken != visit]
        self.snapshots = [self.snapshots[position] for position in left]
        self.visits = [self.visits[position] for position in left]
        return left

    def resume(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        needed: bool = True,
        lora_pairs: Sequence[LoraPair] = (),
    ) -> list[int]:
        """After a resume, find files again, move copies to their device, and drop too many.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            needed: Whether the newest is still to be merged.
            lora_pairs: The LoRA updates of the model.

        Returns:
            Which of the snapshots that the checkpoint held are left, counted from 0.

        Raises:
            ValueError: If a file is not to be found, or not what it was, and that is an error.
        """
        live = named_weights(pl_module)
        if self.visits and not self._rest:  # an earlier version kept one snapshot without it
            self._rest = _rest(trainer, pl_module, lora_pairs)
        found, left = [], []
        references = self._restored or [None] * len(self.visits)
        first = 0 if self.most == "all" else max(0, len(self.visits) - self.most)
        for position in range(first, len(self.visits)):
            snapshot, reference = self.snapshots[position], references[position]
            if reference is not None:
                needless = not needed and self.most == 1
                sought = None if needless else self._find(trainer, self.visits[position], reference)
                if sought is None:
                    continue
                snapshot = sought
            found.append(snapshot.to_devices_of(live, self.storage.device))
            left.append(position)
        self.snapshots, self._restored = found, None
        self.visits = [self.visits[position] for position in left]
        return left

    def _find(self, trainer: Trainer, task: int, reference: FileReference) -> Snapshot | None:
        try:
            return self.storage.find(trainer, reference)
        except ValueError as error:
            lost = f"the snapshot of task {task} (from 0), to which the checkpoint refers: {error}"
            if self.on_missing == "error":
                raise ValueError(
                    f"{lost}; put the file back into a folder 'snapshots' beside the checkpoint, "
                    "or go on without it: snapshots.on_missing='restart_task'"
                ) from error
            rank_zero_warn(f"{lost}; training goes on without it")
            return None

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshots, each as tensors or a reference to a file, and their visits."""
        references = self._restored or [
            each.reference if isinstance(each, FileSnapshot) else None for each in self.snapshots
        ]
        pairs = list(zip(self.snapshots, references, strict=True))
        return {
            "tensors": [{} if reference else dict(snapshot) for snapshot, reference in pairs],
            "files": [reference and reference.state_dict() for _, reference in pairs],
            **self.storage.state_dict(),
            "visits": self.visits,
            "rest": self._rest,
            "next": None if self.next is None else dict(self.next),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, but for files, which :meth:`resume` finds.

        Raises:
            ValueError: If a file's name is none that a snapshot's has, or not every snapshot has
                its task.
        """
        visits = "visits" if "visits" in state_dict else "tasks"  # of which none came twice
        if visits not in state_dict:
            raise FormError("snapshots.visits is missing")
        numbers = {len(state_dict[n]) for n in ("tensors", "files", visits) if n in state_dict}
        if len(numbers) > 1:
            raise FormError(f"snapshots.tensors, .files and .{visits} are not of one length")
        self.snapshots = [Snapshot(tensors) for tensors in state_dict["tensors"]]
        self.visits = list(state_dict[visits])
        self._rest = state_dict["rest"]
        self.next = state_dict.get("next")  # older checkpoints have none
        files = state_dict.get("files", [None] * len(self.visits))  # older checkpoints have none
        self._restored = [None if state is None else FileReference(**state) for state in files]
        self.storage.load_state_dict(state_dict)
        self.storage.named = {each.name for each in self._restored if each is not None}


def _in_place(
    tensors: Mapping[str, Tensor] | None, module: LightningModule
) -> AbstractContextManager[None]:
    """Let a module's weights be others, but for those that are of another shape by now."""
    live = named_weights(module)
    alike = {n: t for n, t in (tensors or {}).items() if n in live and t.shape == live[n].shape}
    return Snapshot(alike).to_devices_of(live).applied_to(module) if alike else nullcontext()


def _rest(trainer: Trainer, pl_module: LightningModule, lora_pairs: Sequence[LoraPair]) -> str:
    """Identify what snapshots leave out; processes that hold shards agree on the first's."""
    own = f"{frozen_digest(pl_module)} {[(pair.module, pair.scale) for pair in lora_pairs]}"
    return str(trainer.strategy.broadcast(own))
