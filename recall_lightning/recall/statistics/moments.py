"""What the tasks so far gave to each linear map, and what the current one gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from recall_lightning.checks import check_choice
from recall_lightning.measuring.batches import batch_size
from recall_lightning.measuring.curvature import (
    KroneckerFactors,
    is_factored,
    kronecker_factors,
    normalised,
)
from recall_lightning.measuring.generation import find_generator, generated_batches
from recall_lightning.measuring.input_moments import empty_moments, input_moments
from recall_lightning.measuring.linear_maps import LinearMap, find_linear_maps
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
    moments_from,
)
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.recall.model_run import ProbeRun
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot


class TaskMoments:
    """Mean second moments of each linear map's inputs, and at its outputs, summed over tasks.

    They are measured by running the model, in evaluation mode, on the last batches that were
    trained; at a task's end those are added to the old ones. The moments of the gradients at
    outputs are measured where a rule uses curvature, and divided so that the curvature, their
    product with the inputs', has the mean 1 over the model: tasks count alike.

    Of what was known before the first task there is no data: there the snapshot writes sequences
    itself if it is a causal language model, else the new task's own batches stand in.

    Args:
        recent: The last batches, which are run.
        full_width: Maps of more inputs than this have moments of low rank plus a diagonal.
        rank: That rank.
        source: ``"task"``, or ``"generated"`` for sequences of the model's own at every task's end.
        run: How the model is run on a batch.
        seed: Of generated sequences, and of labels drawn from predictions.
        curvature: Whether to measure the gradients at outputs, too.

    Attributes:
        old: Weight name of a map to its moments, summed over tasks.
        old_outputs: The same of the gradients at its outputs; the count is the number of tasks.
        tasks: How many tasks that is.
        maps: The model's linear maps.
    """

    def __init__(
        self,
        recent: RecentBatches,
        full_width: int,
        rank: int,
        source: Literal["task", "generated"],
        run: ProbeRun,
        seed: int,
        curvature: bool,
    ) -> None:
        for name, value in (("moment_width", full_width), ("moment_rank", rank)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of 1 or more")
        check_choice("moment_source", source, "task", "generated")
        self.old: dict[str, Moments] = {}
        self.old_outputs: dict[str, FullMoments] = {}
        self.tasks = 0
        self.maps: list[LinearMap] = []
        self.full_width = full_width
        self.rank = rank
        self.source = source
        self.seed = seed
        self.curvature = curvature
        self._told = False  # that predictions are not known
        self._run = run
        self._recent = recent

    def find_maps(self, pl_module: LightningModule, pairs: list[LoraPair]) -> dict[str, str]:
        """Find the linear maps; return how all else is merged, and why, by name."""
        factors = {pair.a: pair.b for pair in pairs}
        self.maps, others = find_linear_maps(pl_module, factors)
        notes = {name: f"merged by one number, as {reason}" for name, reason in others.items()}
        weights = named_weights(pl_module)
        wide = [m.weight for m in self.maps if not is_factored(m, weights, self.full_width)]
        if self.curvature and wide:
            more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
            why = "LoRA updates" if pairs else f"wider than moment_width={self.full_width}"
            notes[wide[0] + more] = f"merged without curvature, as {why}"
        return notes

    def start_task(self, task: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Before the first task forget all; else fit what is known to the model's maps."""
        if task == 0:
            self.old, self.old_outputs, self.tasks = {}, {}, 0
        self._fit_to_maps()
        self._fit_to_outputs(weights)

    def check_source(self, pl_module: LightningModule) -> None:
        """Refuse generated sequences of a model that cannot generate."""
        if self.source == "generated" and find_generator(pl_module) is None:
            raise ValueError(
                "moment_source='generated' needs a causal language model of Hugging Face, which "
                f"{type(pl_module).__name__} does not hold: use moment_source='task'"
            )

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> KroneckerFactors:
        """Return the mean moments of the live model on the last batches."""
        with self._run.ready(trainer, pl_module) as forward:
            return self._measure_on(self._recent.batches, trainer, pl_module, forward)

    def _measure_on(
        self,
        batches: list[Any],
        trainer: Trainer,
        pl_module: LightningModule,
        forward: Callable[[torch.nn.Module, Any], Any],
    ) -> KroneckerFactors:
        seed = self.seed + trainer.global_rank

        def measure(batches: Sequence[Any]) -> KroneckerFactors:
            given = (pl_module, self.maps, batches, forward, self.full_width, self.rank)
            if self.curvature:
                return kronecker_factors(*given, seed=seed)
            return KroneckerFactors(input_moments(*given))

        measured = self._run.evenly(trainer, batches, measure)
        together = KroneckerFactors(
            self._reduced(trainer, pl_module, measured.inputs),
            self._reduced_outputs(trainer, pl_module, measured.outputs),
        )
        if measured.unknown is not None and not self._told:
            self._told = True
            rank_zero_warn(
                "curvature cannot be measured, and the kfac rules merge as importance and subspace "
                f"do: {measured.unknown}"
            )
        return normalised(together)

    def measure_unknown(
        self, trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot, stand_in: bool
    ) -> None:
        """Where no task came before, gather what stands for the snapshot's own inputs.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            snapshot: Its weights at the task's start.
            stand_in: Whether the new task's inputs are used if the model cannot generate.
        """
        generates = find_generator(pl_module) is not None
        if self.tasks or not (generates or stand_in):
            return
        with snapshot.applied_to(pl_module):
            if generates:
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
        if not self._recent.batches:  # a resume after the task's last batch
            rank_zero_warn("no batch of the task was seen: later merges know nothing of its inputs")
            return
        measure = self._measure_generated if self.source == "generated" else self.measure
        self._add(measure(trainer, pl_module))
        self.tasks += 1

    def _add(self, measured: KroneckerFactors) -> None:
        unusable = [name for name, moments in measured.inputs.items() if not _is_finite(moments)]
        for name, moments in measured.inputs.items():
            if name not in unusable:
                self.old[name] = self.old[name].plus(moments) if name in self.old else moments
        for name, outputs in measured.outputs.items():
            if name not in unusable and _is_finite(outputs):
                old = self.old_outputs.get(name)
                self.old_outputs[name] = outputs if old is None else old.plus(outputs)
        if unusable:
            rank_zero_warn(
                f"the inputs of {', '.join(unusable[:3])} hold NaN or infinite values: they are "
                "left out of what later merges keep"
            )

    def _measure_generated(self, trainer: Trainer, pl_module: LightningModule) -> KroneckerFactors:
        size, length = _shape_of(self._recent.batches[-1])
        batches = generated_batches(
            pl_module, self._recent.number, size, length, self.seed + trainer.global_rank
        )
        rank_zero_info(f"{len(batches) * size} sequences of {length} tokens were generated")
        generator = find_generator(pl_module)

        def forward(_: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
            assert generator is not None
            return generator(**batch)

        with trainer.precision_plugin.forward_context():
            return self._measure_on(list(batches), trainer, pl_module, forward)

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
                self.old_outputs.pop(linear_map.weight, None)
        if changed:
            rank_zero_warn(
                f"the number of inputs of {', '.join(changed[:3])} (with 1 for a trained bias) has "
                "changed: what was known of their inputs in earlier tasks is dropped, and this "
                "task merges them by one number"
            )

    def _fit_to_outputs(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Before a task, fit moments at outputs to a map that has more of them, or fewer."""
        for linear_map in self.maps:
            old = self.old_outputs.get(linear_map.weight)
            if old is None or old.width == linear_map.outputs(weights):
                continue
            more = linear_map.outputs(weights) - old.width
            if more > 0:  # nothing depended on the new ones
                matrix = torch.nn.functional.pad(old.matrix, (0, more, 0, more))
                self.old_outputs[linear_map.weight] = FullMoments(matrix, old.count)
            else:
                del self.old_outputs[linear_map.weight]

    def _reduced(
        self, trainer: Trainer, pl_module: LightningModule, moments: Mapping[str, Moments]
    ) -> Mapping[str, Moments]:
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

    def _reduced_outputs(
        self, trainer: Trainer, pl_module: LightningModule, moments: Mapping[str, FullMoments]
    ) -> Mapping[str, FullMoments]:
        """Average over the processes; a map is left out that not all of them have run."""
        if trainer.world_size == 1 or not self.curvature:
            return moments
        used = torch.tensor([float(one.weight in moments) for one in self.maps])
        used = _mean(trainer, used.to(pl_module.device))
        names = [
            one.weight for one, part in zip(self.maps, used.tolist(), strict=True) if part == 1
        ]
        return {n: FullMoments(_mean(trainer, moments[n].matrix), moments[n].count) for n in names}

    def state_dict(self) -> dict[str, Any]:
        """Return the old moments' tensors and the number of tasks."""
        return {
            "old": {name: moments.state_dict() for name, moments in self.old.items()},
            "old_outputs": {n: moments.state_dict() for n, moments in self.old_outputs.items()},
            "tasks": self.tasks,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.old = {name: moments_from(state) for name, state in state_dict["old"].items()}
        outputs = state_dict.get("old_outputs", {})  # older checkpoints have none
        self.old_outputs = {n: FullMoments(**state) for n, state in outputs.items()}
        self.tasks = state_dict["tasks"]

    def to_device(self, device: torch.device) -> None:
        """After a resume, move the tensors to the module's device."""
        for name, moments in self.old.items():
            self.old[name] = moments_from(move_data_to_device(moments.state_dict(), device))
        for name, outputs in self.old_outputs.items():
            state = move_data_to_device(outputs.state_dict(), device)
            self.old_outputs[name] = FullMoments(**state)


def _is_finite(moments: Moments) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in moments.state_dict().values())


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
