"""A task's typical samples, and what a model under training makes of them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.measuring.batches import (
    batch_size,
    concatenate,
    detached,
    only_tensors,
    rebuild,
    select_samples,
)
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.candidates import draw_candidates, training_samples
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.isolation import cuda_devices, isolated_rng
from recall_lightning.measuring.typical_samples import choose_typical_samples
from recall_lightning.recall.model_run import ProbeRun
from recall_lightning.weights.sharding import of_all_processes, of_this_process
from recall_lightning.weights.snapshot import Snapshot


class Probe:
    """Chooses a task's typical samples once, and measures snapshot and live model on them.

    Candidates are drawn from the dataset behind the training dataloader when the task starts.
    Where it can't be read apart from training (an ``IterableDataset``, a custom sampler, several
    dataloaders), training's own first batches are the candidates, and the snapshot is measured on
    the choice as soon as there are enough.

    Args:
        typical_samples: How many samples to choose.
        pool_size: How many candidates to choose from.
        run: How the model is run on a batch; it knows the blocks.
        seed: Seed of the draw and of k-means.
        sampling: How to choose: by k-means over hidden states, or at random.

    Attributes:
        snapshot_states: For each snapshot, oldest first, block name to its states on the typical
            samples, (samples, hidden) float32; empty until they are chosen.

    Raises:
        ValueError: From every method, for samples, inputs or states that are of no use.
    """

    def __init__(
        self,
        typical_samples: int,
        pool_size: int,
        run: ProbeRun,
        seed: int = 0,
        sampling: Literal["k-means", "random"] = "k-means",
    ) -> None:
        self.typical_samples = typical_samples
        self.pool_size = pool_size
        self.seed = seed
        self.sampling = sampling
        self._run = run
        self.snapshot_states: list[dict[str, Tensor]] = []
        self._candidates: list[Any] = []
        self._typical: list[Any] = []
        self._restored: list[list[Tensor] | None] = []

    @property
    def candidate_count(self) -> int:
        """Samples gathered so far to choose from."""
        return sum(batch_size(batch) for batch in self._candidates)

    @property
    def has_typical_samples(self) -> bool:
        """Whether the task's typical samples are chosen."""
        return bool(self._typical)

    def start_task(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        snapshots: Sequence[Snapshot],
    ) -> None:
        """Forget the last task's samples and choose this one's, if its dataset can be read."""
        self.snapshot_states = []
        self._candidates, self._typical, self._restored = [], [], []
        available = training_samples(trainer.train_dataloader)
        if available is not None and available < self.typical_samples:
            raise ValueError(
                f"typical_samples={self.typical_samples} cannot be chosen from the {available} "
                "training samples of this task: lower typical_samples"
            )
        batches = draw_candidates(trainer.train_dataloader, self.pool_size, self.seed) or []
        with isolated_rng(cuda_devices(pl_module)):  # transfer hooks may augment at random
            for batch in batches:
                batch = trainer.precision_plugin.convert_input(batch)
                batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                self._candidates.append(batch)
        if self._candidates:
            self.choose(trainer, pl_module, snapshots)

    def observe(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        snapshots: Sequence[Snapshot],
        batch: Any,
    ) -> None:
        """Take a training batch's samples as candidates, while typical samples are lacking."""
        if self._restored and None not in self._restored:
            tensors = move_data_to_device(self._restored, pl_module.device)
            self._typical = [rebuild(batch, parts) for parts in tensors]
        self._restored = []
        if not self.has_typical_samples:
            self._candidates.append(detached(batch))  # a training_step may change its batch
            enough = self.candidate_count >= self.pool_size
            if is_sharded(trainer):  # its processes must run it together
                enough = trainer.strategy.reduce_boolean_decision(enough)
            if enough:
                self.choose(trainer, pl_module, snapshots)

    def choose(
        self, trainer: Trainer, pl_module: LightningModule, snapshots: Sequence[Snapshot]
    ) -> None:
        """Choose typical samples under the newest snapshot, and measure all snapshots on them."""
        count = min(self.typical_samples, self.candidate_count)
        if self.sampling == "random":
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(self.candidate_count, generator=generator)[:count].sort().values
        else:
            last_block = self._run.blocks[-1:]
            with snapshots[-1].applied_to(pl_module):
                deepest = self._measure(trainer, pl_module, self._candidates, last_block)
            chosen = choose_typical_samples(next(iter(deepest.values())), count, self.seed)
        parts, first = [], 0
        for batch in self._candidates:
            size = batch_size(batch)
            inside = chosen[(chosen >= first) & (chosen < first + size)] - first
            first += size
            if len(inside):
                parts.append(select_samples(batch, inside))
        # no more at a time than training computes at a time
        typical = concatenate(parts, most=max(map(batch_size, self._candidates)))
        states = []
        for snapshot in snapshots:
            with snapshot.applied_to(pl_module):
                states.append(self._measure(trainer, pl_module, typical, self._run.blocks))
        for name, state in ((n, s) for measured in states for n, s in measured.items()):
            if not torch.isfinite(state).all():
                raise ValueError(
                    f"the snapshot's hidden states of block {name} hold NaN or infinite values on "
                    "this task's training data"
                )
        self.snapshot_states, self._typical, self._candidates = states, typical, []

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the live model's hidden states on the typical samples, by block name."""
        return self._measure(trainer, pl_module, self._typical, self._run.blocks)

    def state_dict(self) -> dict[str, Any]:
        """Return each process's typical samples, where tensors, and the snapshot's states."""
        own = {
            "snapshot_states": self.snapshot_states,
            "typical": [only_tensors(batch) for batch in self._typical],
        }
        return {"processes": of_all_processes(own)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, as far as it goes before the first batch."""
        own = of_this_process(state_dict["processes"])
        self.snapshot_states = own["snapshot_states"]
        self._restored = own["typical"]

    def resume(self, pl_module: LightningModule) -> None:
        """Make what a checkpoint held usable again on the module's device."""
        self.snapshot_states = move_data_to_device(self.snapshot_states, pl_module.device)

    def leave_snapshots(self, left: Sequence[int]) -> None:
        """Forget what was measured under all snapshots but those at these positions."""
        if self.snapshot_states:
            self.snapshot_states = [self.snapshot_states[position] for position in left]

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: Sequence[Any],
        blocks: Sequence[Block],
    ) -> dict[str, Tensor]:
        with self._run.ready(trainer, pl_module) as forward:
            return self._run.evenly(
                trainer, batches, lambda some: hidden_states(pl_module, blocks, some, forward)
            )
