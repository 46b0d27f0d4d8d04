"""A task's typical samples, and what a model under training makes of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from recall_lightning.representations.batches import (
    batch_size,
    concatenate,
    detached,
    only_tensors,
    rebuild,
    select_samples,
)
from recall_lightning.representations.blocks import Block
from recall_lightning.representations.candidates import draw_candidates, training_samples
from recall_lightning.representations.forward import ProbeForward, default_forward
from recall_lightning.representations.hidden_states import (
    cuda_devices,
    hidden_states,
    isolated_rng,
)
from recall_lightning.representations.typical_samples import choose_typical_samples
from recall_lightning.snapshots import Snapshot


class Probe:
    """Chooses a task's typical samples once, and measures snapshot and live model on them.

    Candidates are drawn from the dataset behind the training dataloader when the task starts.
    Where it can't be read apart from training (an ``IterableDataset``, a custom sampler, several
    dataloaders), training's own first batches are the candidates, and the snapshot is measured on
    the choice as soon as there are enough.

    Args:
        typical_samples: How many samples to choose.
        pool_size: How many candidates to choose from.
        seed: Seed of the draw and of k-means.
        probe_forward: Runs the module on a batch; None works the inputs out.

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
        seed: int = 0,
        probe_forward: ProbeForward | None = None,
    ) -> None:
        self.typical_samples = typical_samples
        self.pool_size = pool_size
        self.seed = seed
        self.probe_forward = probe_forward
        self.snapshot_states: list[dict[str, Tensor]] = []
        self._blocks: Sequence[Block] = []
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
        blocks: Sequence[Block],
    ) -> None:
        """Forget the last task's samples and choose this one's, if its dataset can be read."""
        self._blocks, self.snapshot_states = blocks, []
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
            if self.candidate_count >= self.pool_size:
                self.choose(trainer, pl_module, snapshots)

    def choose(
        self, trainer: Trainer, pl_module: LightningModule, snapshots: Sequence[Snapshot]
    ) -> None:
        """Choose typical samples under the newest snapshot, and measure all snapshots on them."""
        count = min(self.typical_samples, self.candidate_count)
        with snapshots[-1].applied_to(pl_module):
            deepest = self._measure(trainer, pl_module, self._candidates, self._blocks[-1:])
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
                states.append(self._measure(trainer, pl_module, typical, self._blocks))
        for name, state in ((n, s) for measured in states for n, s in measured.items()):
            if not torch.isfinite(state).all():
                raise ValueError(
                    f"the snapshot's hidden states of block {name} hold NaN or infinite values on "
                    "this task's training data"
                )
        self.snapshot_states, self._typical, self._candidates = states, typical, []

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the live model's hidden states on the typical samples, by block name."""
        return self._measure(trainer, pl_module, self._typical, self._blocks)

    def state_dict(self) -> dict[str, Any]:
        """Return the typical samples, where they are tensors, and the snapshot's states."""
        return {
            "snapshot_states": self.snapshot_states,
            "typical": [only_tensors(batch) for batch in self._typical],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, as far as it goes before the first batch."""
        self.snapshot_states = state_dict["snapshot_states"]
        self._restored = state_dict["typical"]

    def resume(self, pl_module: LightningModule, blocks: Sequence[Block]) -> None:
        """Make what a checkpoint held usable again on the module's device."""
        self._blocks = blocks
        self.snapshot_states = move_data_to_device(self.snapshot_states, pl_module.device)

    def _measure(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: Sequence[Any],
        blocks: Sequence[Block],
    ) -> dict[str, Tensor]:
        def forward(module: torch.nn.Module, batch: Any) -> None:
            try:
                if self.probe_forward is not None:
                    self.probe_forward(module, batch)
                else:
                    default_forward(module, self._blocks, batch)
            except Exception as error:
                own = self.probe_forward is not None
                ran = "your probe_forward" if own else type(module).__name__
                advice = "" if own else ": pass probe_forward=lambda module, batch: module(…)"
                entries = f" with entries {', '.join(batch)}" if isinstance(batch, Mapping) else ""
                raise ValueError(
                    f"{ran} could not be run on a training batch ({type(batch).__name__}{entries}) "
                    f"to measure hidden states{advice}; {type(error).__name__}: {error}"
                ) from error

        with trainer.precision_plugin.forward_context(), _silent(pl_module):
            return hidden_states(pl_module, blocks, batches, forward)


@contextmanager
def _silent(pl_module: LightningModule) -> Iterator[None]:
    """Keep what a forward logs out of the loggers."""
    vars(pl_module).update(log=lambda *_, **__: None, log_dict=lambda *_, **__: None)
    try:
        yield
    finally:
        del vars(pl_module)["log"], vars(pl_module)["log_dict"]
