"""A quadratic penalty on leaving a task's first linear maps, updates of adapters among them."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.stored_state import count_tensors, damage_is_said
from recall_lightning.checks import FormError, check_count, first_of
from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.batches import batch_size
from recall_lightning.measuring.generation import write_sequences
from recall_lightning.measuring.linear_maps import (
    LinearMap,
    as_matrix,
    find_linear_maps,
    from_matrix,
)
from recall_lightning.measuring.predictions import FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.merging.lora.pairs import LoraPair, find_lora_pairs
from recall_lightning.merging.structure import Structure
from recall_lightning.methods.map_curvature import MapCurvature, curvature_from
from recall_lightning.methods.penalty import PenaltyState, QuadraticPenalty
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.statistics.recent_batches import RecentBatches, RecentBatchesState
from recall_lightning.weights.naming import canonical_name, named_weights

Measured = tuple[dict[str, MapCurvature], str | None]


class MapPenaltyState(PenaltyState):
    """What a checkpoint holds of it."""

    curvature: dict[str, dict[str, Tensor]]
    recent_batches: RecentBatchesState
    predictions: str | None


class MapPenalty(QuadraticPenalty):
    """Adds strength/2 · Σ vec(W − W*)ᵀ F vec(W − W*) to the loss, over a model's linear maps.

    W* is the map at the task's start. Where the model has LoRA adapters W is the update that they
    stand for, ΔW = scale · BA, and F the curvature of the layer that it is added to: its gradient
    reaches A and B by the chain rule. F is measured at every task's end, under the weights it ends
    with, by running the model forward and backward over the task's last batches with labels drawn
    from its own predictions; before the first task, where there is no data, a causal language model
    writes sequences of its own, and other models have no F. F is in nats a prediction, so that with
    strength 1 the penalty estimates what an earlier task's loss rises by.

    What is no linear map (norms' scales and shifts, LoRA of embeddings and convolutions) is left to
    training alone, which is logged. How and when the gradient is added:
    :class:`~recall_lightning.methods.penalty.QuadraticPenalty`.

    Args:
        strength: λ, what the penalty is multiplied by, 0 or more.
        batches: On how many of a task's last batches F is measured, per process.
        decay: What earlier tasks' F is multiplied by at a task's end, in [0, 1].
        from_first_task: Whether what the model knows before its first task is worth keeping.
        seed: Of drawn labels and of sequences that the model writes.
        predictions: What the model predicts: ``"classes"``, ``"values"``, ``"binary"``, an object
            or a function as in :class:`~recall_lightning.RecallCallback`, or ``"auto"``: what a
            batch's targets tell.
        task_epochs: Epochs a task, only where no datamodule tells the task.

    Raises:
        MisconfigurationException: For an argument out of its range, a strategy that shards the
            weights, or an adapter that is no plain LoRA.

    Attributes:
        curvature: F by a map's name, or that of an adapter's B.
    """

    decides_at_start = False
    state_form: ClassVar[type] = MapPenaltyState

    def __init__(
        self,
        strength: float,
        batches: int = 32,
        decay: float = 1.0,
        from_first_task: bool = True,
        seed: int = 0,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
        task_epochs: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(strength, from_first_task, task_epochs)
        if not 0 <= decay <= 1:
            raise MisconfigurationException(f"decay={decay!r} must lie in [0, 1]")
        with misconfiguration():
            check_count("batches", batches)
            self._predictions = FoundPredictions(predictions)
        self.decay = decay
        self.seed = seed
        self.curvature: dict[str, MapCurvature] = {}
        self._recent = RecentBatches(batches)
        self._run = ModelRun()
        self._maps: dict[str, LinearMap] = {}
        self._pairs: dict[str, LoraPair] = {}  # of the maps that are adapters' updates, by B
        self._writes_first = False  # once its first batch shows how long sequences are
        self._left_alone: list[str] = []

    @abstractmethod
    def measure(
        self, module: nn.Module, maps: Sequence[LinearMap], batches: Sequence[Any], view: ModelView
    ) -> Measured:
        """Measure F of maps on batches, by weight name; or say why nothing is known.

        Args:
            module: The model.
            maps: Its linear maps, and the updates of its adapters.
            batches: Batches on the model's device.
            view: How the module is run.
        """

    @abstractmethod
    def over_processes(
        self, trainer: Trainer, maps: Sequence[LinearMap], measured: dict[str, MapCurvature]
    ) -> dict[str, MapCurvature]:
        """Return the mean of what all processes have measured."""

    @property
    def protects(self) -> bool:
        """Whether there is an F."""
        return bool(self.curvature) or self._writes_first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring what is kept to the device."""
        self._find_maps(pl_module)
        super().on_train_start(trainer, pl_module)
        device = pl_module.device
        self.curvature = {name: own.to(device) for name, own in self.curvature.items()}
        self._recent.resume(self._context(trainer, pl_module))

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Take the anchor, and start to keep batches."""
        self._recent.forget_samples()
        self._writes_first = False
        self._find_maps(pl_module)
        if self.visit == 0:  # what there is comes from another run
            self.curvature = {}
            if self.from_first_task:
                self._writes_first = find_generator(pl_module) is not None
            if self.from_first_task and not self._writes_first:
                rank_zero_warn(
                    f"{type(self).__name__} does not protect what the model knows before its first "
                    "task: there is no data to measure its curvature on, and it writes none; "
                    "from_first_task=False accepts that"
                )
        super().on_task_start(trainer, pl_module, task)
        self._fit_to_maps(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch; before the first of all, measure on what the model writes itself."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._recent.keep(batch)
        if self._writes_first:
            self._writes_first = False
            self._add(self._measure_written(trainer, pl_module, batch), "before its first task")

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Add what the task depends on to F."""
        batches = self._recent.batches
        if self.clock.has_learned and batches:
            with self._run.ready(self._context(trainer, pl_module)) as view:
                measured = self._measure_everywhere(trainer, pl_module, batches, view)
            self._add(measured, f"of task {task}")
        else:
            rank_zero_warn(
                f"task {task} took no optimizer step, so {type(self).__name__} has no curvature of "
                "it and will not protect it"
            )
        self._recent.forget_samples()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the penalty's gradient."""
        if not self.curvature:
            self.anchor = None  # nothing could be measured
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def pulls(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradients of what maps and updates are made of."""
        assert self.anchor is not None
        for name, curvature in self.curvature.items():
            linear_map, pair = self._maps.get(name), self._pairs.get(name)
            if linear_map is None:
                continue
            parts = [linear_map.weight, linear_map.bias] if pair is None else [pair.a, pair.b]
            names = [part for part in parts if part is not None]
            if not all(part in weights and part in self.anchor for part in names):
                continue
            own = {n: weights[n] for n in names}
            if all(weight.grad is None for weight in own.values()):
                continue
            if pair is None:
                yield from self._map_pulls(curvature, linear_map, own).items()
            else:
                yield from self._update_pulls(curvature, pair, own).items()

    def _map_pulls(
        self, curvature: MapCurvature, linear_map: LinearMap, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        assert self.anchor is not None
        now, then = as_matrix(linear_map, weights), as_matrix(linear_map, self.anchor)
        gradient = curvature.times(now.float() - then.float())
        nothing = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return from_matrix(linear_map, gradient, nothing)  # of packed weights other maps have parts

    def _update_pulls(
        self, curvature: MapCurvature, pair: LoraPair, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """With D = s(BA − B*A*): s F(D) Aᵀ for B, and s Bᵀ F(D) for A."""
        assert self.anchor is not None
        a, b = (weights[name].detach().float() for name in (pair.a, pair.b))
        old_a, old_b = (self.anchor[name].float() for name in (pair.a, pair.b))
        left, right = pair.scale * torch.cat([b, -old_b], 1), torch.cat([a, old_a])
        of_b, of_a = curvature.of_factors(left, right, b, a)
        return {pair.a: pair.scale * of_a, pair.b: pair.scale * of_b}

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check the anchor's names and shapes, and the sizes of F."""
        super().check_fits(weights)
        for name, curvature in self.curvature.items():
            linear_map = self._maps.get(name)
            if linear_map is not None and curvature.shape != _shape(linear_map, weights):
                raise FormError(
                    f"curvature.{name} is of a matrix of shape {curvature.shape}, and the model's "
                    f"has {_shape(linear_map, weights)}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the task, the anchor, F, the last batches and the kind of predictions."""
        own = {
            "curvature": {name: one.state_dict() for name, one in self.curvature.items()},
            "recent_batches": self._recent.state_dict(),
            "predictions": self._predictions.found,
        }
        state = {**super().state_dict(), **own}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.curvature = {}
        with damage_is_said(type(self).__name__):
            for name, state in state_dict["curvature"].items():
                try:
                    self.curvature[name] = curvature_from(state)
                except (KeyError, ValueError) as error:
                    raise FormError(f"curvature.{name} lacks or mistakes {error}") from error
            self._recent.load_state_dict(state_dict["recent_batches"])
        self._predictions.restore(state_dict["predictions"])

    def _context(self, trainer: Trainer, pl_module: LightningModule) -> TaskContext:
        return TaskContext(trainer, pl_module, self.clock, Structure(), ())

    def _find_maps(self, pl_module: LightningModule) -> None:
        """Find the model's maps, and leave a word of what is none."""
        try:
            pairs = find_lora_pairs(pl_module)
        except ValueError as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        weights = named_weights(pl_module)
        modules = {canonical_name(name): child for name, child in pl_module.named_modules()}
        maps, _ = find_linear_maps(pl_module, {pair.a: pair.b for pair in pairs})
        plain = {one.name: one for one in maps if one.second_factor is None}
        self._pairs = {pair.b: pair for pair in pairs if _is_linear(pair, modules[pair.module])}
        updates = {
            b: LinearMap(b, None, "linear", (pair.module,), weights[pair.a].shape[1])
            for b, pair in self._pairs.items()
        }
        self._maps = plain | updates
        covered = {name for one in plain.values() for name in (one.weight, one.bias)}
        covered |= {name for pair in self._pairs.values() for name in (pair.a, pair.b)}
        left = [n for n, w in weights.items() if isinstance(w, nn.Parameter) and n not in covered]
        if left and left != self._left_alone:
            rank_zero_info(
                f"{type(self).__name__} leaves {first_of(left)} to training alone: no linear maps"
            )
        self._left_alone = left

    def _fit_to_maps(self, pl_module: LightningModule) -> None:
        """Before a task, fit F to maps that have grown; drop it where they have changed."""
        weights, gone = named_weights(pl_module), []
        for name, curvature in list(self.curvature.items()):
            linear_map = self._maps.get(name)
            shape = None if linear_map is None else _shape(linear_map, weights)
            if shape == curvature.shape:
                continue
            fitted = None if shape is None else curvature.grown(shape)
            if fitted is None:
                gone.append(name)
                del self.curvature[name]
            else:
                self.curvature[name] = fitted
        if gone:
            rank_zero_warn(
                f"{type(self).__name__} no longer protects {first_of(gone)}: frozen, gone or of "
                "another shape since the last task"
            )

    def _measure_written(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any
    ) -> Measured:
        """Measure on sequences that the model writes, as long as those of a batch."""
        generator = find_generator(pl_module)
        assert generator is not None
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        length = 64 if ids is None else max(2, ids.shape[1])
        number, seed = self._recent.number, self.seed + trainer.global_rank
        with trainer.precision_plugin.forward_context():
            size = batch_size(batch)
            written = write_sequences(pl_module, number * size, length, seed).batches(size)
            view = view_of(pl_module).with_forward(lambda _, own: generator(**own))
            return self._measure_everywhere(trainer, pl_module, written, view)

    def _measure_everywhere(
        self, trainer: Trainer, pl_module: LightningModule, batches: Sequence[Any], view: ModelView
    ) -> Measured:
        maps = list(self._maps.values())
        with misconfiguration(type(self).__name__):
            measured, unknown = self.measure(pl_module, maps, batches, view)
        if trainer.world_size > 1:
            measured = self.over_processes(trainer, maps, measured)
        return measured, unknown

    def _add(self, measured: Measured, what: str) -> None:
        curvatures, unknown = measured
        finite = {
            name: one
            for name, one in curvatures.items()
            if all(bool(tensor.isfinite().all()) for tensor in one.state_dict().values())
        }
        if len(finite) < len(curvatures) or not curvatures:
            why = "it is not finite" if curvatures else unknown or "the model ran none of its maps"
            rank_zero_warn(f"{type(self).__name__} has not all of the curvature {what}: {why}")
        for name, one in finite.items():
            old = self.curvature.get(name)
            self.curvature[name] = one if old is None else old.plus(one, self.decay)


def _is_linear(pair: LoraPair, layer: nn.Module) -> bool:
    return type(layer).__name__.startswith("Linear") and not pair.embedding


def _shape(linear_map: LinearMap, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    outputs = linear_map.outputs(weights)
    sides = (outputs, linear_map.width)
    return sides[::-1] if linear_map.kind == "embedding" else sides
