"""What the tasks so far gave to each linear map, and what the current one meets."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.distributions import Distribution

from recall_lightning.checks import first_of
from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.curvature import (
    NOT_TOLD,
    KroneckerFactors,
    is_factored,
    kronecker_factors,
    normalised,
)
from recall_lightning.measuring.input_moments import empty_moments, input_moments
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.map_check import unlike_linear_maps
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
    moments_from,
)
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
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.training_loss import TrainingLoss
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.sharding import reshard


class MomentsState(TypedDict):
    """What a checkpoint holds of them; an older one holds less."""

    old: dict[str, dict[str, torch.Tensor]]
    old_outputs: NotRequired[dict[str, dict[str, torch.Tensor]]]
    tasks: int
    predictions: NotRequired[str | None]
    curvature: NotRequired[bool]
    kind: NotRequired[str | None]


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
        old: Name of a map to its moments, summed over tasks.
        old_outputs: The same of the gradients at its outputs; the count is the number of tasks.
        tasks: How many tasks that is.
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
        self.old: dict[str, Moments] = {}
        self.old_outputs: dict[str, FullMoments] = {}
        self.tasks = 0
        self.settings = settings
        self.seed = seed
        self.curvature = curvature
        self._predictions = FoundPredictions(predictions)
        self._told: str | None = None  # what the log says of them
        self._loss = TrainingLoss()
        self._trial = self._predictions  # on a task's first batch, with why it told nothing
        self._unknown: str | None = None
        self._run = run
        self._recent = recent
        self._prior = prior

    def notes(self, structure: Structure, module: torch.nn.Module) -> Mapping[str, str]:
        """Say which weights are merged by one number, and which without curvature."""
        reasons = structure.others.items()
        notes = {name: f"merged by one number, as {reason}" for name, reason in reasons}
        weights, width = named_weights(module), self.settings.width
        wide = [m.name for m in structure.maps if not is_factored(m, weights, width)]
        if self.curvature and wide:
            more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
            why = f"wider than moments.width={width}"
            notes[wide[0] + more] = f"merged without curvature, as {why}"
        return notes

    def start_task(self, context: TaskContext) -> None:
        """Before the first task forget all; else fit what is known to the model's maps."""
        module = context.pl_module
        if self.settings.source == "generated" and find_generator(module) is None:
            raise ValueError(
                "moments.source='generated' needs a causal language model of Hugging Face, which "
                f"{type(module).__name__} does not hold: use 'task'"
            )
        if context.clock.visit == 0 and context.snapshots:
            self._prior.check(context)
        if context.clock.visit == 0:
            self.old, self.old_outputs, self.tasks = {}, {}, 0
        self._loss.stop()
        self._fit_to_maps(context.structure.maps)
        self._fit_to_outputs(context.structure.maps, named_weights(module))

    def check_batch(self, context: TaskContext, batch: Any) -> Mapping[str, str]:
        """Try to run the model forward and backward; find what is no linear map after all."""
        if context.clock.visit == 0 and context.snapshots:
            self._prior.check_batch(context)
        self._trial = copy.copy(self._predictions)  # what the batch tells is found when measured
        with self._run.ready(context) as view:
            watched = _LogitsShape(view)
            tried = self._on(context, [batch], view.with_forward(watched), self._trial)
            self._unknown = tried.unknown
            unlike = unlike_linear_maps(context.pl_module, context.structure.maps, batch, view)
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

    def prepare_merge(self, context: TaskContext, rule: MergeRule, last: bool) -> bool:
        """Where no task came before, gather what stands for the snapshot's own inputs.

        That is the new task's inputs if nothing is known of those, for a rule that uses them.
        """
        known = self._prior.is_known(context.pl_module)
        if self.tasks or not (known or "new_moments" in rule.needs):
            return True
        with context.snapshots[-1].applied_to(context.pl_module):
            if known:
                self._add(self._measure_prior(context, *self._prior.batches(context)))
            else:
                rank_zero_warn(
                    "there are no inputs of what the model knew before its first task: "
                    "the first task's own inputs stand in, so only what they have in common with "
                    "the earlier ones is protected; pass prior= a DataLoader of what it is to "
                    "keep, or merge_first_task=False if the model starts from random weights"
                )
                self._add(self.measure(context))
        self.tasks = 1
        return True

    def give(self, context: TaskContext, rule: MergeRule) -> Sequence[Mapping[str, Any]]:
        """Return old moments and, measured now, those of the current task."""
        own: dict[str, Any] = {
            "old_moments": self.old,
            "old_output_moments": self.old_outputs,
            "earlier_tasks": max(1, self.tasks),
        }
        if "new_moments" in rule.needs:
            new = self.measure(context)
            own |= {"new_moments": new.inputs, "new_output_moments": new.outputs}
        return [own for _ in context.snapshots]

    def end_task(self, context: TaskContext) -> None:
        """Add the inputs of the task that ends, under the merged weights."""
        if self.settings.source == "generated":
            self._add(self._measure_prior(context, *self._prior.written(context, "of a task")))
        elif self._recent.batches:
            self._add(self.measure(context))
        else:  # a resume after its last batch
            rank_zero_warn("no batch of the task was seen: later merges know nothing of its inputs")
            return
        self.tasks += 1

    def measure(self, context: TaskContext) -> KroneckerFactors:
        """Return the mean moments of the live model on the last batches."""
        with self._run.ready(context) as view:
            return self._measure_on(context, self._recent.batches, view)

    def _measure_on(
        self, context: TaskContext, batches: list[Any], view: ModelView
    ) -> KroneckerFactors:
        trainer, module, maps = context.trainer, context.pl_module, context.structure.maps
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
        maps, width, rank = context.structure.maps, self.settings.width, self.settings.rank
        given = (context.pl_module, maps, batches, view, width, rank)
        if not self.curvature:
            return KroneckerFactors(input_moments(*given))
        seed = self.seed + context.trainer.global_rank
        return kronecker_factors(*given, seed=seed, predictions=predictions)

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

    def _fit_to_maps(self, maps: Sequence[LinearMap]) -> None:
        """Before a task, leave out moments of inputs that are no longer what they were."""
        changed = []
        for linear_map in maps:
            old = self.old.get(linear_map.name)
            if old is None or old.width == linear_map.width:
                continue
            new_rows = linear_map.width - old.width
            if (
                linear_map.kind in ("embedding", "bag")
                and new_rows > 0
                and self._is_kept(linear_map)
            ):
                self.old[linear_map.name] = old.padded(new_rows)
            else:
                changed.append(linear_map.name)
                del self.old[linear_map.name]
                self.old_outputs.pop(linear_map.name, None)
        if changed:
            rank_zero_warn(
                f"the number of inputs of {', '.join(changed[:3])} (with 1 for a trained bias) has "
                "changed: what was known of their inputs in earlier tasks is dropped, and this "
                "task merges them by one number"
            )

    def _fit_to_outputs(
        self, maps: Sequence[LinearMap], weights: Mapping[str, torch.Tensor]
    ) -> None:
        """Before a task, fit moments at outputs to a map that has more of them, or fewer."""
        for linear_map in maps:
            old = self.old_outputs.get(linear_map.name)
            if old is None or old.width == linear_map.outputs(weights):
                continue
            more = linear_map.outputs(weights) - old.width
            if more > 0:  # nothing depended on the new ones
                matrix = torch.nn.functional.pad(old.matrix, (0, more, 0, more))
                self.old_outputs[linear_map.name] = FullMoments(matrix, old.count)
            else:
                del self.old_outputs[linear_map.name]

    def state_dict(self) -> dict[str, Any]:
        """Return the old moments' tensors and the number of tasks."""
        return {
            "old": {name: moments.state_dict() for name, moments in self.old.items()},
            "old_outputs": {n: moments.state_dict() for n, moments in self.old_outputs.items()},
            "tasks": self.tasks,
            "predictions": self._predictions.found,
            "curvature": self.curvature,
            "kind": _kind(self._predictions),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If what it sums up was measured in a way that the rules have no use for.
        """
        if state_dict["tasks"]:
            self._check_measured_alike(state_dict)
        self.old = _restored(state_dict["old"], "old")
        outputs = state_dict.get("old_outputs", {})  # older checkpoints have none
        self.old_outputs = {}
        for name, moments in _restored(outputs, "old_outputs").items():
            if not isinstance(moments, FullMoments):
                raise ValueError(f"statistics.moments.old_outputs.{name} lacks 'matrix'")
            self.old_outputs[name] = moments
        self.tasks = state_dict["tasks"]
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
        device = context.pl_module.device
        for linear_map in context.structure.maps:
            self._take_together(linear_map)
            self._check_kept_alike(linear_map)
        for name, moments in self.old.items():
            state = move_data_to_device(moments.state_dict(), device)
            if "rank" in state:
                state["rank"] = torch.tensor(min(self.settings.rank, moments.width))
            self.old[name] = moments_from(state)
        for name, outputs in self.old_outputs.items():
            state = move_data_to_device(outputs.state_dict(), device)
            self.old_outputs[name] = FullMoments(**state)

    def check_fits(self, context: TaskContext) -> None:
        """Check the widths of what is known of the model's maps."""
        weights = named_weights(context.pl_module)
        for linear_map in context.structure.maps:
            name = linear_map.name
            outputs = linear_map.outputs(weights) if name in self.old_outputs else 0
            for entry, known, wanted in (
                ("old", self.old.get(name), linear_map.width),
                ("old_outputs", self.old_outputs.get(name), outputs),
            ):
                if known is not None and known.width != wanted:
                    raise ValueError(
                        f"statistics.moments.{entry}.{name} is of {known.width} entries, and the "
                        f"model's map has {wanted}"
                    )

    def _take_together(self, linear_map: LinearMap) -> None:
        """Turn lookups of a checkpoint that counted them one by one into moments of their rows."""
        old = self.old.get(linear_map.name)
        if linear_map.kind != "bag" or not isinstance(old, RowCounts):
            return
        device, width = old.counts.device, self.settings.width
        wide = replace(linear_map, width=old.width)
        moments = empty_moments(wide, device, width, self.settings.rank)
        assert isinstance(moments, FullMoments | LowRankMoments)
        moments.add_diagonal(old.counts, 0)
        moments.count = old.count
        self.old[linear_map.name] = moments

    def _is_kept(self, linear_map: LinearMap) -> bool:
        """Tell whether moments of a map are known in the form that they are measured in now."""
        device, old = torch.device("cpu"), self.old.get(linear_map.name)
        now = empty_moments(linear_map, device, self.settings.width, self.settings.rank)
        return type(now) is type(old)

    def _check_kept_alike(self, linear_map: LinearMap) -> None:
        old = self.old.get(linear_map.name)
        if old is None or old.width != linear_map.width:  # a task's start drops or fits these
            return
        if not self._is_kept(linear_map):
            raise ValueError(
                f"moments.width={self.settings.width} keeps moments of {linear_map.name}, of "
                f"{linear_map.width} inputs (with 1 for a trained bias), in another form than the "
                "checkpoint has them, to which nothing can be added: resume with the moments.width "
                "that it was written with"
            )


def _restored(states: Mapping[str, Mapping[str, torch.Tensor]], entry: str) -> dict[str, Moments]:
    moments = {}
    for name, state in states.items():
        try:
            moments[name] = moments_from(state)
        except (KeyError, ValueError, RuntimeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"statistics.moments.{entry}.{name} {what}") from error
    return moments


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


def _is_finite(moments: Moments) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in moments.state_dict().values())
