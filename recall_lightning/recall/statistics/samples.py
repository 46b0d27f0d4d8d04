"""A task's typical samples, and what a model under training makes of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.checks import FormError
from recall_lightning.measuring.batches import (
    batch_size,
    concatenate,
    detached,
    only_tensors,
    rebuild,
    select_samples,
    tensors_of,
)
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.candidates import draw_candidates, training_samples
from recall_lightning.measuring.hidden_states import hidden_states
from recall_lightning.measuring.isolation import cuda_devices, isolated_rng
from recall_lightning.measuring.set_aside import set_aside
from recall_lightning.measuring.typical_samples import choose_typical_samples
from recall_lightning.merging.rules import MergeRule, Similarity
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.settings import SampleSettings
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.weights.sharding import of_all_processes, of_this_process


class SamplesOfProcess(TypedDict):
    """What a checkpoint holds of a process's typical samples."""

    snapshot_states: list[dict[str, Tensor]]
    typical: list[list[Tensor] | None]


class SamplesState(TypedDict):
    """What a checkpoint holds of all processes' typical samples."""

    processes: list[SamplesOfProcess]


class TypicalSamples(Statistic):
    """Chooses a task's typical samples once, and compares snapshots and live model on them.

    Candidates are drawn from the dataset behind the training dataloader when the task starts.
    Where it can't be read apart from training (an ``IterableDataset``, a custom sampler, several
    dataloaders), training's own first batches are the candidates, and the snapshot is measured on
    the choice as soon as there are enough.

    Candidates are in memory alone. Typical samples are in checkpoints too, until the task ends.

    Args:
        settings: How many samples, from how many candidates, chosen how.
        run: How the model is run on a batch.
        seed: Seed of the draw and of k-means.

    Attributes:
        snapshot_states: For each snapshot, oldest first, block name to its states on the typical
            samples, (samples, hidden) float32; empty until they are chosen.
    """

    name = "samples"
    meets = frozenset({"similarity"})
    form = SamplesState

    def __init__(self, settings: SampleSettings, run: ModelRun, seed: int = 0) -> None:
        self.settings = settings
        self.seed = seed
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

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return the bytes of as many samples of a batch, and of their states."""
        states = hidden_states(module, structure.blocks, [batch], self._run.view)
        share = self.settings.typical / batch_size(batch)
        return {
            "typical samples": round(share * sum(each.nbytes for each in tensors_of(batch))),
            "their states": snapshots * round(share * sum(each.nbytes for each in states.values())),
        }

    def start_task(self, context: TaskContext) -> None:
        """Forget the last task's samples and choose this one's, if its dataset can be read."""
        self.forget_samples()
        if not context.snapshots:
            return
        trainer, module = context.trainer, context.pl_module
        available = training_samples(trainer.train_dataloader)
        if available is not None and available < self.settings.typical:
            raise ValueError(
                f"samples.typical={self.settings.typical} cannot be chosen from the {available} "
                "training samples of this task: lower it"
            )
        drawn = draw_candidates(trainer.train_dataloader, self.settings.pool, self.seed) or []
        # transfer hooks may augment at random, and count
        with isolated_rng(cuda_devices(module)), set_aside(module):
            for batch in drawn:
                batch = trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
                batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                self._candidates.append(batch)
        if self._candidates:
            self._choose(context)

    def check_batch(self, context: TaskContext, batch: Any) -> Mapping[str, str]:
        """Try to take samples out of the batch, and to measure every block's states on them."""
        few = select_samples(batch, torch.arange(min(2, batch_size(batch))))
        self._measure(context, [few], context.structure.blocks)
        return {}

    def complete(self, context: TaskContext, batch: Any) -> None:
        """Rebuild the typical samples that a checkpoint held."""
        if self._restored and None not in self._restored:
            tensors = move_data_to_device(self._restored, context.pl_module.device)
            self._typical = [rebuild(batch, parts) for parts in tensors]
        self._restored = []

    def observe_batch(self, context: TaskContext, batch: Any) -> None:
        """Take a training batch's samples as candidates, while typical samples are lacking."""
        if not context.snapshots:
            return
        self.complete(context, batch)
        if not self.has_typical_samples:
            self._candidates.append(detached(batch))  # a training_step may change its batch
            enough = self.candidate_count >= self.settings.pool
            if is_sharded(context.trainer):  # its processes must run it together
                enough = context.trainer.strategy.reduce_boolean_decision(enough)
            if enough:
                self._choose(context)

    def prepare_merge(self, context: TaskContext, rule: MergeRule, last: bool) -> bool:
        """Choose typical samples, if there are enough; at the last merge from what there are."""
        wanted = self.settings.typical
        enough = self.has_typical_samples or self.candidate_count >= wanted
        # processes wait for each other in a merge: all of them merge, or none
        everywhere = context.trainer.strategy.reduce_boolean_decision(enough)
        if not everywhere and not last:
            return False  # more candidates come with the next batches
        if self.has_typical_samples:
            return True
        if not enough:
            rank_zero_warn(
                f"the task had only {self.candidate_count} samples to choose "
                f"samples.typical={wanted} from; all of them are used"
            )
        self._choose(context)
        return True

    def give(self, context: TaskContext, rule: MergeRule) -> Sequence[Mapping[str, Any]]:
        """Measure each block's similarity to each snapshot, averaged over processes."""
        compare = comparison_of(rule)
        states = self._measure(context, self._typical, context.structure.blocks)
        local = torch.tensor(
            [[compare(old[name], states[name]) for name in states] for old in self.snapshot_states],
            device=context.pl_module.device,
        )
        mean = context.trainer.strategy.reduce(local, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return [{"similarity": dict(zip(states, row, strict=True))} for row in mean.tolist()]

    def forget_samples(self) -> None:
        """Forget candidates, typical samples and what snapshots made of them."""
        self.snapshot_states = []
        self._candidates, self._typical, self._restored = [], [], []

    def resume(self, context: TaskContext) -> None:
        """Make what a checkpoint held usable again on the module's device."""
        self.snapshot_states = move_data_to_device(self.snapshot_states, context.pl_module.device)

    def check_fits(self, context: TaskContext) -> None:
        """Check that states are of the model's blocks, under each snapshot."""
        names = {block.name for block in context.structure.blocks}
        whole = all(
            states.keys() == names and all(state.dim() == 2 for state in states.values())
            for states in self.snapshot_states
        )
        if self.snapshot_states and not (
            whole and len(self.snapshot_states) == len(context.snapshots)
        ):
            raise FormError(
                "statistics.samples.snapshot_states are not of the model's blocks, under each of "
                f"{len(context.snapshots)} snapshot(s)"
            )

    def leave_snapshots(self, left: Sequence[int]) -> None:
        """Forget what was measured under all snapshots but those at these positions."""
        if self.snapshot_states:
            self.snapshot_states = [self.snapshot_states[position] for position in left]

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
        self._candidates, self._typical, self._restored = [], [], own["typical"]

    def _choose(self, context: TaskContext) -> None:
        """Choose typical samples under the newest snapshot, and measure all snapshots on them."""
        count = min(self.settings.typical, self.candidate_count)
        if self.settings.sampling == "random":
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(self.candidate_count, generator=generator)[:count].sort().values
        else:
            last_block = context.structure.blocks[-1:]
            with context.snapshots[-1].applied_to(context.pl_module):
                deepest = self._measure(context, self._candidates, last_block)
            chosen = choose_typical_samples(next(iter(deepest.values())), count, self.seed)
        typical = _samples_at(chosen, self._candidates)
        states = []
        for snapshot in context.snapshots:
            with snapshot.applied_to(context.pl_module):
                states.append(self._measure(context, typical, context.structure.blocks))
        for name, state in ((n, s) for measured in states for n, s in measured.items()):
            if not torch.isfinite(state).all():
                raise ValueError(
                    f"the snapshot's hidden states of block {name} hold NaN or infinite values on "
                    "this task's training data: check its inputs, or leave the block out"
                )
        self.snapshot_states, self._typical, self._candidates = states, typical, []

    def _measure(
        self, context: TaskContext, batches: Sequence[Any], blocks: Sequence[Block]
    ) -> dict[str, Tensor]:
        with self._run.ready(context) as view:
            return self._run.evenly(
                context.trainer,
                batches,
                lambda some: hidden_states(context.pl_module, blocks, some, view),
            )


def comparison_of(rule: MergeRule) -> Callable[[Tensor, Tensor], float]:
    """Return how a rule compares two models' states on the same samples, (samples, hidden) each.

    Raises:
        ValueError: If it does not say.
    """
    compare: Callable[[Tensor, Tensor], float] | None = getattr(rule, "similarity", None)
    if compare is None:
        raise ValueError(
            f"{type(rule).__name__} needs similarity and does not say how states are compared: "
            f"make it a subclass of {Similarity.__name__}"
        )
    return compare


def _samples_at(chosen: Tensor, batches: Sequence[Any]) -> list[Any]:
    """Take samples out of batches by their position among all, a batch's number at a time."""
    parts, first = [], 0
    for batch in batches:
        size = batch_size(batch)
        inside = chosen[(chosen >= first) & (chosen < first + size)] - first
        first += size
        if len(inside):
            parts.append(select_samples(batch, inside))
    # no more at a time than training computes at a time
    return concatenate(parts, most=max(map(batch_size, batches)))
