"""What the tasks so far gave to each linear map, and what the current one meets."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.distributions import Distribution

from recall_lightning.checks import first_of
from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.curvature import (
    NOT_TOLD,
    KroneckerFactors,
    kronecker_factors,
    normalised,
)
from recall_lightning.measuring.input_moments import empty_moments, input_moments
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.map_check import unlike_linear_maps
from recall_lightning.measuring.moments import Moments
from recall_lightning.measuring.predictions import FoundPredictions, Predictions
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.process_means import (
    mean_over_processes,
    mean_where_all_have,
)
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.prior import Prior
from recall_lightning.recall.statistics.recent_batches import RecentBatches, last_with
from recall_lightning.recall.statistics.summed_moments import SummedMoments, Sums, SumsState
from recall_lightning.recall.training_loss import TrainingLoss
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.sharding import of_all_processes, of_this_process, reshard


class MomentsState(SumsState):
    """What a checkpoint holds of them; an older one holds less."""

    predictions: NotRequired[str | None]
    curvature: NotRequired[bool]
    kind: NotRequired[str | None]
    prior_written: NotRequired[list[list[dict[str, torch.Tensor]]]]


class MapMoments(Statistic):
    """Mean second moments of each linear map's inputs, and at its outputs, summed over tasks.

    They are measured by running the model, in evaluation mode, on the last batches that were
    trained; at a task's end those are added to the old ones. The moments of the gradients at
    outputs are measured where a rule uses curvature, and divided so that the curvature, their
    product with the inputs', has the mean 1 over the model: tasks count alike.

    Of what was known before the first task the user gives data, or the snapshot writes sequences
    itself if it is a causal language model; else the new task's own batches stand in.

    Args:
        recent: The last batches, which are run.
        settings: Widths, ranks and source.
        prior: What was known before the first task.
        run: How the model is run on a batch.
        seed: Of generated sequences, and of labels drawn from predictions.
        curvature: Whether to measure the gradients at outputs, too.
        predictions: Of which kind the model's are, for those.

    Raises:
        ValueError: If there is no such kind.

    Attributes:
        known: The sums over the tasks so far.
    """

    name = "moments"
    meets = frozenset({"moments", "new_moments", "curvature"})
    form = MomentsState
    of_earlier_tasks = True

    def __init__(
        self,
        recent: RecentBatches,
        settings: MomentSettings,
        prior: Prior,
        run: ModelRun,
        seed: int,
        curvature: bool,
        predictions: str | Predictions | Callable[[torch.Tensor], Distribution] = "auto",
    ) -> None:
        self.known = SummedMoments(settings)
        self.settings = settings
        self.seed = seed
        self.curvature = curvature
        self._predictions = FoundPredictions(predictions)
        self._told: str | None = None  # what the log says of them
        self._memory_is_told = False
        self._loss = TrainingLoss()
        self._trial = self._predictions  # on a task's first batch, with why it told nothing
        self._unknown: str | None = None
        self._run = run
        self._recent = recent
        self.prior = prior
        self._written: list[Mapping[str, torch.Tensor]] = []
        self._ended: dict[str, Any] = {}

    @property
    def of_maps(self) -> dict[str, Any]:
        """The sums over earlier tasks."""
        return {
            "old_moments": dict(self.known.inputs),  # a task that ends changes these
            "old_output_moments": dict(self.known.outputs),
            "earlier_tasks": max(1, self.known.tasks),
            "curvature_mean": self.known.mean,
        }

    def take_ended(self) -> Mapping[str, Any]:
        """Hand over what was known of earlier tasks, and what the one that has ended gave."""
        ended, self._ended = self._ended, {}
        return ended

    @property
    def written(self) -> Sequence[Mapping[str, torch.Tensor]]:
        """The first batch of what the model wrote before its first task, if it did."""
        return self._written

    @property
    def predictions(self) -> FoundPredictions | None:
        """What is known of the model's predictions, if they are looked at."""
        return self._predictions if self.curvature else None

    def notes(self, structure: Structure, module: torch.nn.Module) -> Mapping[str, str]:
        """Say which weights are merged by one number."""
        reasons = structure.others.items()
        return {name: f"merged by one number, as {reason}" for name, reason in reasons}

    def start_task(self, context: TaskContext) -> None:
        """Before the first task forget all; else fit what is known to the model's maps."""
        module = context.pl_module
        if self.settings.source == "generated" and find_generator(module) is None:
            raise ValueError(
                "moments.source='generated' needs a causal language model of Hugging Face, which "
                f"{type(module).__name__} does not hold: use 'task'"
            )
        if context.clock.visit == 0 and context.snapshots:
            self.prior.check(context)
        if context.clock.visit == 0:
            self.known.forget()
            self._written = []
        self._loss.stop()
        self.known.fit_to(context.structure.maps, named_weights(module))

    def check_batch(self, context: TaskContext, batch: Any) -> Mapping[str, str]:
        """Try to run the model forward and backward; find what is no linear map after all."""
        if context.clock.visit == 0 and context.snapshots:
            self.prior.check_batch(context)
        self._trial = copy.copy(self._predictions)  # what the batch tells is found when measured
        with self._run.ready(context) as view:
            watched = _LogitsShape(view)
            tried = self._on(context, [batch], view.with_forward(watched), self._trial)
            self._unknown = tried.unknown
            unlike = unlike_linear_maps(context.pl_module, context.structure.maps, batch, view)
        self._tell_memory(tried)
        unlike = self._found_anywhere(context, unlike)
        if unlike:
            rank_zero_warn(
                f"RecallCallback: what the model does with {first_of(unlike)} is not y = Wx + b, "
                f"so it is merged by one number: {next(iter(unlike.values()))}"
            )
        maps = [each.name for each in context.structure.maps if each.weight not in unlike]
        idle = [name for name in maps if name not in tried.inputs]
        if idle:
            rank_zero_warn(
                f"RecallCallback: {first_of(idle)} had no inputs when the model was run on the "
                "task's first batch; what has none in a whole task is merged by one number: if "
                "training uses it, pass a view that runs it too"
            )
        if self.curvature and watched.shape is not None:
            view = view_of(context.pl_module, self._run.view)
            own_view = self._run.view is not None
            self._loss.listen(context.pl_module, view, watched.shape, own_view)
        elif self.curvature:
            self._predictions.see_loss(None)
            self._tell(self._trial, self._unknown, "as the batch tells")
        return unlike

    def observe_batch(self, context: TaskContext, batch: Any) -> None:
        """Listen to this step's outputs alone."""
        self._loss.start_step()

    def observe_loss(self, context: TaskContext, loss: torch.Tensor) -> None:
        """In a task's first step, take what the loss tells of predictions, and say it."""
        if not self._loss.is_awaited:
            return
        evidence, of_own_outputs = self._loss.told(loss)
        other = self._predictions.see_loss(evidence, of_own_outputs)
        if other is not None and self._predictions.kind is not None:
            rank_zero_warn(
                f"RecallCallback: predictions={self._predictions.kind.name!r} is set, and the "
                f"training loss takes the model's outputs for {other!r}: curvature is that of what "
                "is set"
            )
        if self._predictions.is_shown and self._unknown in (None, NOT_TOLD):
            self._tell(self._predictions, None, "as the training loss tells")
        else:
            self._tell(self._trial, self._unknown, "as the batch tells")

    def expected_bytes(
        self, structure: Structure, module: torch.nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return the bytes of all maps' moments, and of the bases in which the loop merges by them.

        The batch is run, since maps that read one tensor keep its moments once.
        """
        view = view_of(module, self._run.view)
        unlike = unlike_linear_maps(module, structure.maps, batch, view)
        kept = _kept(self.tried(module, structure.without_maps(unlike).maps, [batch], view))
        return {
            "moments": sum(moments.most_nbytes for moments in kept),
            "eigenvectors": sum(moments.basis_nbytes for moments in kept),
        }

    def tried(
        self,
        module: torch.nn.Module,
        maps: Sequence[LinearMap],
        batches: Sequence[Any],
        view: ModelView,
    ) -> KroneckerFactors:
        """Return the moments of batches, and learn nothing from them."""
        return self._of(module, maps, batches, view, copy.copy(self._predictions), self.seed)

    def measured_of(
        self, batches: Sequence[Any], maps: Sequence[LinearMap], view: ModelView
    ) -> list[Any]:
        """Return those of a task's last batches on which moments are measured."""
        if any(each.kind in ("embedding", "bag") for each in maps):
            return list(batches)
        return last_with(batches, self.settings.labels, view)

    def prepare_merge(self, context: TaskContext, rule: MergeRule, last: bool) -> bool:
        """Where no task came before, gather what stands for the snapshot's own inputs.

        That is the new task's inputs if nothing is known of those, for a rule that uses them.
        """
        prior_is_known = self.prior.is_known(context.pl_module)
        if self.known.tasks or not (prior_is_known or "new_moments" in rule.needs):
            return True
        with context.snapshots[-1].applied_to(context.pl_module):
            if prior_is_known:
                batches, view = self.prior.batches(context)
                try:
                    measured = self._measure_prior(context, batches, view)
                except ValueError as error:
                    raise ValueError(f"prior=: {error}") from error
                self.known.add(measured)
                self._written = [] if self.prior.is_given else batches[:1]
            else:
                rank_zero_warn(
                    "there are no inputs of what the model knew before its first task: "
                    "the first task's own inputs stand in, so only what they have in common with "
                    "the earlier ones is protected; pass prior= a DataLoader of what it is to "
                    "keep, or merge_first_task=False if the model starts from random weights"
                )
                self.known.add(self.measure(context))
        return True

    def give(self, context: TaskContext, rule: MergeRule) -> Sequence[Mapping[str, Any]]:
        """Return old moments and, measured now, those of the current task."""
        is_compared = "new_moments" in rule.needs
        own = self._beside_earlier(self.measure(context)) if is_compared else self.of_maps
        return [own for _ in context.snapshots]

    def _beside_earlier(self, new: KroneckerFactors) -> dict[str, Any]:
        """Return what is known of earlier tasks, and this of a new one, as a rule compares them."""
        return self.of_maps | {"new_moments": new.inputs, "new_output_moments": new.outputs}

    def end_task(self, context: TaskContext) -> None:
        """Add the inputs of the task that ends, under the merged weights."""
        if self.settings.source == "generated":
            measured = self._measure_prior(context, *self.prior.written(context, "of a task"))
        elif self._recent.batches:
            measured = self.measure(context)
        else:  # a resume after its last batch
            rank_zero_warn("no batch of the task was seen: later merges know nothing of its inputs")
            return
        if self.known.tasks and self.prior.is_known(context.pl_module):
            self._ended = self._beside_earlier(measured)
        self.known.add(measured)

    def sums(self) -> Sums:
        """Return the moments so far."""
        return self.known.sums()

    def put_back(self, sums: Sums) -> None:
        """Go back to them."""
        self.known.put_back(sums)

    def measure(self, context: TaskContext) -> KroneckerFactors:
        """Return the mean moments of the live model on the last batches."""
        with self._run.ready(context) as view:
            return self._measure_on(context, self._recent.batches, view)

    def _measure_on(
        self, context: TaskContext, batches: list[Any], view: ModelView
    ) -> KroneckerFactors:
        trainer, module, maps = context.trainer, context.pl_module, context.structure.maps
        batches = self.measured_of(batches, maps, view)
        width, rank = self.settings.width, self.settings.rank

        def measure(some: Sequence[Any]) -> KroneckerFactors:
            return self._on(context, some, view, self._predictions)

        measured = self._run.evenly(trainer, batches, measure)
        if trainer.world_size > 1:
            empty = {m.name: empty_moments(m, module.device, width, rank) for m in maps}
            inputs = mean_over_processes(trainer, measured.inputs, empty)
            outputs = measured.outputs
            if self.curvature:
                outputs = mean_where_all_have(trainer, outputs, list(empty), module.device)
            together = KroneckerFactors(inputs, outputs)
        else:
            together = KroneckerFactors(measured.inputs, measured.outputs)
        shown = self._predictions.is_shown
        told = "as the training loss tells" if shown else "as the batch tells"
        self._tell(self._predictions, measured.unknown, told)
        return normalised(together)

    def _found_anywhere(self, context: TaskContext, reasons: Mapping[str, str]) -> dict[str, str]:
        """Add what other processes have found, as all must measure the same maps."""
        trainer, names = context.trainer, [each.weight for each in context.structure.maps]
        if trainer.world_size == 1 or not names:
            return dict(reasons)
        own = torch.tensor([float(name in reasons) for name in names])
        found = trainer.strategy.reduce(own.to(trainer.strategy.root_device), reduce_op="max")
        assert isinstance(found, torch.Tensor)
        others = [name for name, there in zip(names, found.tolist(), strict=True) if there]
        return {name: reasons.get(name, "another process's batch shows it") for name in others}

    def _on(
        self,
        context: TaskContext,
        batches: Sequence[Any],
        view: ModelView,
        predictions: FoundPredictions,
    ) -> KroneckerFactors:
        """Run the model on this process's batches."""
        seed = self.seed + context.trainer.global_rank
        maps = context.structure.maps
        return self._of(context.pl_module, maps, batches, view, predictions, seed)

    def _of(
        self,
        module: torch.nn.Module,
        maps: Sequence[LinearMap],
        batches: Sequence[Any],
        view: ModelView,
        predictions: FoundPredictions,
        seed: int,
    ) -> KroneckerFactors:
        given = (module, maps, batches, view, self.settings.width, self.settings.rank)
        if not self.curvature:
            return KroneckerFactors(input_moments(*given))
        return kronecker_factors(*given, seed=seed, predictions=predictions)

    def _tell_memory(self, measured: KroneckerFactors) -> None:
        """Say once how much memory the moments of all tasks will take."""
        if not self._memory_is_told:
            size = sum(moments.most_nbytes for moments in _kept(measured)) / 2**20
            rank_zero_info(
                f"RecallCallback: the moments of linear maps take {size:.3g} MiB, however many the "
                "tasks, and those of the current task as much again while it ends (less with a "
                "smaller moments.width or moments.rank)"
            )
            self._memory_is_told = True

    def _tell(self, predictions: FoundPredictions, unknown: str | None, told: str) -> None:
        """Say once what the model's predictions were taken for, or why for nothing."""
        kind = predictions.kind
        found = unknown
        if found is None and kind is not None:
            found = kind.name or type(kind).__name__
        if not self.curvature or found is None or found == self._told:
            return
        if unknown is not None:
            rank_zero_warn(
                "curvature cannot be measured, and the kfac rules merge as importance and subspace "
                f"do: {unknown}"
            )
        elif predictions.doubt is not None:
            rank_zero_warn(
                f"RecallCallback takes what the model predicts for {found!r}, {told}, and it may "
                f"be {predictions.doubt!r} as well, which the training loss does not tell: set "
                "predictions="
            )
        elif predictions.found is not None:
            rank_zero_info(
                f"RecallCallback takes what the model predicts for {found!r}, {told}: set "
                "predictions= if it is something else"
            )
        self._told = found

    def _measure_prior(
        self, context: TaskContext, batches: list[Any], view: ModelView | None
    ) -> KroneckerFactors:
        if view is None:
            with self._run.ready(context) as own:
                return self._measure_on(context, batches, own)
        try:
            with context.trainer.precision_plugin.forward_context():
                return self._measure_on(context, batches, view)
        finally:
            reshard(context.pl_module)

    def release(self, context: TaskContext) -> None:
        """Listen to no loss any more."""
        self._loss.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the old moments' tensors and the number of tasks."""
        return {
            **self.known.state_dict(),
            "predictions": self._predictions.found,
            "curvature": self.curvature,
            "kind": _kind(self._predictions),
            "prior_written": of_all_processes(self._written),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If what it sums up was measured in a way that the rules have no use for.
        """
        if state_dict["tasks"]:
            self._check_measured_alike(state_dict)
        self.known.load_state_dict(state_dict)
        self._written = of_this_process(state_dict.get("prior_written", [[]]))
        self._predictions.restore(state_dict.get("predictions") or state_dict.get("kind"))

    def _check_measured_alike(self, state_dict: Mapping[str, Any]) -> None:
        then, now = state_dict.get("kind"), _kind(self._predictions)
        if self.curvature and not state_dict.get("curvature", True):
            raise ValueError(
                "the checkpoint holds moments without the curvature that the kfac rules need, and "
                "it cannot be had of tasks that had ended: resume with the rules that it was "
                "written with"
            )
        if self.curvature and None not in (then, now) and then != now:
            raise ValueError(
                f"predictions={now!r}, and the curvature in the checkpoint was measured of "
                f"{then!r}: resume with predictions={then!r}"
            )

    def resume(self, context: TaskContext) -> None:
        """After a resume, move the tensors to the module's device, and keep the rank of now.

        Raises:
            ValueError: If moments are kept otherwise now than they were, and can't be summed.
        """
        self.known.resume(context.structure.maps, context.pl_module.device)
        self._written = move_data_to_device(self._written, context.pl_module.device)

    def check_fits(self, context: TaskContext) -> None:
        """Check the widths of what is known of the model's maps."""
        self.known.check_fits(context.structure.maps, named_weights(context.pl_module))


def _kept(measured: KroneckerFactors) -> set[Moments]:
    """Return the moments that are kept: maps may share theirs."""
    return {*measured.inputs.values(), *measured.outputs.values()}


def _kind(predictions: FoundPredictions) -> str | None:
    kind = predictions.kind
    return None if kind is None else kind.name or type(kind).__name__


class _LogitsShape:
    """Runs a model as a view does, and keeps the shape of the logits that the view finds."""

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.shape: torch.Size | None = None

    def __call__(self, module: torch.nn.Module, batch: Any) -> Any:
        output = self.view.forward(module, batch)
        logits = self.view.logits(output)
        self.shape = None if logits is None else logits.shape
        return output
