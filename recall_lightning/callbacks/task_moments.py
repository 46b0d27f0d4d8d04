"""What the tasks so far gave to each linear map, and what the current one gives."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from recall_lightning.callbacks.probe_run import ProbeRun
from recall_lightning.merging.adapters import LoraPair
from recall_lightning.representations.batches import (
    batch_size,
    detached,
    only_tensors,
    rebuild,
)
from recall_lightning.representations.generation import find_generator, generated_batches
from recall_lightning.representations.linear_maps import LinearMap, find_linear_maps
from recall_lightning.representations.map_moments import empty_moments, input_moments
from recall_lightning.representations.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
    moments_from,
)
from recall_lightning.snapshots import Snapshot


class TaskMoments:
    """Mean second moments of each linear map's inputs, summed over tasks.

    They are measured by running the model, in evaluation mode, on the last batches that were
    trained; at a task's end those are added to the old ones. Of what was known before the first
    task there is no data: there the snapshot writes sequences itself if it is a causal language
    model, else the new task's own batches stand in.

    Args:
        batches: How many of the last batches to keep and run.
        full_width: Maps of more inputs than this have moments of low rank plus a diagonal.
        rank: That rank.
        source: ``"task"``, or ``"generated"`` for sequences of the model's own at every task's end.
        run: How the model is run on a batch.
        seed: Of generated sequences.

    Attributes:
        old: Weight name of a map to its moments, summed over tasks.
        tasks: How many tasks that is.
        maps: The model's linear maps.
    """

    def __init__(
        self,
        batches: int,
        full_width: int,
        rank: int,
        source: Literal["task", "generated"],
        run: ProbeRun,
        seed: int,
    ) -> None:
        for name, value in (
            ("moment_batches", batches),
            ("moment_width", full_width),
            ("moment_rank", rank),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of 1 or more")
        if source not in ("task", "generated"):
            raise ValueError(f"moment_source={source!r} is unknown: use 'task' or 'generated'")
        self.old: dict[str, Moments] = {}
        self.tasks = 0
        self.maps: list[LinearMap] = []
        self.full_width = full_width
        self.rank = rank
        self.source = source
        self.seed = seed
        self._run = run
        self._recent: deque[Any] = deque(maxlen=batches)
        self._restored: list[list[torch.Tensor] | None] = []

    def find_maps(self, pl_module: LightningModule, pairs: list[LoraPair]) -> dict[str, str]:
        """Find the linear maps; return why other weight matrices are none, by name."""
        factors = {pair.a: pair.b for pair in pairs}
        self.maps, others = find_linear_maps(pl_module, factors)
        return others

    def start_task(self, task: int) -> None:
        """Forget the batches of the last task; before the first one, everything."""
        if task == 0:
            self.old, self.tasks = {}, 0
        self._recent.clear()
        self._restored = []
        self._fit_to_maps()

    def check_source(self, pl_module: LightningModule) -> None:
        """Refuse generated sequences of a model that cannot generate."""
        if self.source == "generated" and find_generator(pl_module) is None:
            raise ValueError(
                "moment_source='generated' needs a causal language model of Hugging Face, which "
                f"{type(pl_module).__name__} does not hold: use moment_source='task'"
            )

    def keep(self, batch: Any) -> None:
        """Keep a training batch in place of the oldest."""
        if self._restored and None not in self._restored:
            self._recent.extend(rebuild(batch, tensors or []) for tensors in self._restored)
        self._restored = []
        self._recent.append(detached(batch))  # a training_step may change its batch

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Moments]:
        """Return the mean moments of the live model on the last batches."""
        with self._run.ready(trainer, pl_module) as forward:
            moments = input_moments(
                pl_module, self.maps, list(self._recent), forward, self.full_width, self.rank
            )
        return self._reduced(trainer, pl_module, moments)

    def measure_unknown(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot
    ) -> None:
        """Where no task came before, gather what stands for the snapshot's own inputs."""
        if self.tasks:
            return
        with snapshot.applied_to(pl_module):
            if find_generator(pl_module) is not None:
                self._add(self._measure_generated(trainer, pl_module))
            else:
                rank_zero_warn(
                    "the subspace rule has no inputs of what the model knew before its first task: "
                    "the first task's own inputs stand in, so only what they have in common with "
                    "the earlier ones is protected; use merge_first_task=False if the model starts "
                    "from random weights"
                )
                self._add(self.measure(trainer, pl_module))
        self.tasks = 1

    def end_task(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the inputs of the task that ends, under the merged weights."""
        if not self._recent:  # a resume after the task's last batch
            rank_zero_warn("no batch of the task was seen: later merges know nothing of its inputs")
            return
        measure = self._measure_generated if self.source == "generated" else self.measure
        self._add(measure(trainer, pl_module))
        self.tasks += 1

    def _add(self, measured: Mapping[str, Moments]) -> None:
        unusable = []
        for name, moments in measured.items():
            if all(bool(tensor.isfinite().all()) for tensor in moments.state_dict().values()):
                self.old[name] = self.old[name].plus(moments) if name in self.old else moments
            else:
                unusable.append(name)
        if unusable:
            rank_zero_warn(
                f"the inputs of {', '.join(unusable[:3])} hold NaN or infinite values: they are "
                "left out of what later merges keep"
            )

    def _measure_generated(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, Moments]:
        size, length = _shape_of(self._recent[-1])
        batches = generated_batches(
            pl_module, len(self._recent), size, length, self.seed + trainer.global_rank
        )
        rank_zero_info(f"{len(batches) * size} sequences of {length} tokens were generated")
        generator = find_generator(pl_module)

        def forward(_: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> None:
            assert generator is not None
            generator(**batch)

        with trainer.precision_plugin.forward_context():
            moments = input_moments(
                pl_module, self.maps, batches, forward, self.full_width, self.rank
            )
        return self._reduced(trainer, pl_module, moments)

    def _fit_to_maps(self) -> None:
        """Before a task, leave out moments of inputs that are no longer what they were."""
        changed = []
        for linear_map in self.maps:
            old = self.old.get(linear_map.weight)
            if old is None or old.width == linear_map.width:
                continue
            if isinstance(old, RowCounts) and old.width < linear_map.width:
                new_rows = linear_map.width - old.width
                counts = torch.nn.functional.pad(old.counts, (0, new_rows))
                self.old[linear_map.weight] = RowCounts(counts, old.count)
            else:
                changed.append(linear_map.weight)
                del self.old[linear_map.weight]
        if changed:
            rank_zero_warn(
                f"the number of inputs of {', '.join(changed[:3])} (with 1 for a trained bias) has "
                "changed: what was known of their inputs in earlier tasks is dropped, and this "
                "task merges them by one number"
            )

    def _reduced(
        self, trainer: Trainer, pl_module: LightningModule, moments: dict[str, Moments]
    ) -> dict[str, Moments]:
        """Average over the processes, each of which has run its own batches through a map."""
        if trainer.world_size == 1:
            return moments
        used = torch.tensor([float(one.weight in moments) for one in self.maps])
        used = _mean(trainer, used.to(pl_module.device))
        together = {}
        for linear_map, part in zip(self.maps, used.tolist(), strict=True):
            if part > 0:
                empty = empty_moments(linear_map, pl_module.device, self.full_width, self.rank)
                own = moments.get(linear_map.weight, empty)
                together[linear_map.weight] = _averaged(trainer, own).scaled(1 / part)
        return together

    def state_dict(self) -> dict[str, Any]:
        """Return the old moments' tensors, the number of tasks and, if tensors, the batches."""
        return {
            "old": {name: moments.state_dict() for name, moments in self.old.items()},
            "tasks": self.tasks,
            "recent": self._restored or [only_tensors(batch) for batch in self._recent],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.old = {name: moments_from(state) for name, state in state_dict["old"].items()}
        self.tasks = state_dict["tasks"]
        self._restored = state_dict["recent"]

    def to_device(self, device: torch.device) -> None:
        """After a resume, move the tensors to the module's device."""
        for name, moments in self.old.items():
            self.old[name] = moments_from(move_data_to_device(moments.state_dict(), device))
        self._restored = move_data_to_device(self._restored, device)


def _shape_of(batch: Any) -> tuple[int, int]:
    """Return the number of sequences in a batch, and their tokens."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return batch_size(batch), 64 if ids is None else max(2, int(ids.shape[1]))


def _averaged(trainer: Trainer, own: Moments) -> Moments:
    if isinstance(own, FullMoments):
        return FullMoments(_mean(trainer, own.matrix), own.count)
    if isinstance(own, RowCounts):
        return RowCounts(_mean(trainer, own.counts), own.count)
    assert isinstance(own, LowRankMoments)
    return _gathered(trainer, own)


def _mean(trainer: Trainer, tensor: torch.Tensor) -> torch.Tensor:
    reduced = trainer.strategy.reduce(tensor.clone(), reduce_op="mean")
    assert isinstance(reduced, torch.Tensor)
    return reduced


def _gathered(trainer: Trainer, own: LowRankMoments) -> LowRankMoments:
    """Average moments of low rank, whose factors are stacked instead of added."""
    short = own.rank - len(own.factor)
    padded = torch.nn.functional.pad(own.factor, (0, 0, 0, short))  # all_gather wants one shape
    diagonals = trainer.strategy.all_gather(own.diagonal)
    factors = trainer.strategy.all_gather(padded)
    share = 1 / trainer.world_size
    total = LowRankMoments(factors[0], diagonals[0], own.count, own.rank).scaled(share)
    for factor, diagonal in zip(factors[1:], diagonals[1:], strict=True):
        total = total.plus(LowRankMoments(factor, diagonal, own.count, own.rank).scaled(share))
    return LowRankMoments(total.factor, total.diagonal, own.count, own.rank)
