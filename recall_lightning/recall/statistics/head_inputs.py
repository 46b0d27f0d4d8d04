"""What the last layer of a classifier was given in each task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.checks import FormError
from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.head import given_to, head_of
from recall_lightning.measuring.input_mixture import InputMixture
from recall_lightning.measuring.input_moments import empty_side
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import Moments
from recall_lightning.measuring.predictions.categorical import Categorical
from recall_lightning.measuring.view import CausalView, ModelView, view_of
from recall_lightning.merging.head import Predicted
from recall_lightning.merging.moved_inputs import KNOWN_INPUTS, MovedInputs
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.process_means import (
    averaged,
    mean_over_processes,
    sum_over_processes,
    summed,
)
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.moments import MapMoments
from recall_lightning.recall.statistics.recent_batches import RecentBatches, last_with
from recall_lightning.weights.naming import named_weights


class HeadInputsState(TypedDict):
    """What a checkpoint holds of them: a mixture a task."""

    tasks: list[dict[str, Any]]
    covers_all: bool
    layer: NotRequired[str | None]


class HeadInputs(Statistic):
    """For each task, where the inputs of the model's last layer lay, class by predicted class.

    They are measured at a task's end, under its last weights, on the batches of which moments are.
    Those of earlier tasks are taken along: the layers before have changed, and how far that moves
    the current task's inputs tells how far it moves theirs, as far as those are of new classes.
    There are none of a model that predicts no classes, or whose logits are not a layer's outputs,
    and none of a sharded one.

    Args:
        recent: The last batches, on which the model is run.
        settings: Of moments: how many labels, and which width is wide.
        run: How the model is run.
        moments: What is known of the model's predictions.
        seed: Of what is drawn of them.
        is_asked_for: Whether it is warned where no layer can be fitted.

    Attributes:
        tasks: The mixture of each task so far.
        covers_all: Whether every task that has ended is among them.
        layer: The name of the layer that they are inputs of.
    """

    name = "head_inputs"
    form = HeadInputsState

    def __init__(
        self,
        recent: RecentBatches,
        settings: MomentSettings,
        run: ModelRun,
        moments: MapMoments,
        seed: int,
        is_asked_for: bool = False,
    ) -> None:
        self.tasks: list[InputMixture] = []
        self.covers_all = True
        self.layer: str | None = None
        self._recent, self._settings, self._run, self._moments = recent, settings, run, moments
        self._seed, self._is_asked_for = seed, is_asked_for
        self._told: set[str] = set()

    def head(self, context: TaskContext) -> LinearMap | None:
        """Return the layer whose outputs are the classes' logits, in all processes alike.

        It is found by running the model on the last batch.
        """
        module, trainer = context.pl_module, context.trainer
        if not self._of_classes:
            if self._is_asked_for:
                self._tell_why("it predicts no classes")
            return None
        if is_sharded(trainer):
            self._tell_why("it is sharded")
            return None
        batches, found, is_causal = self._recent.batches, None, False
        if batches:
            with undisturbed(module), self._run.ready(context) as view:
                found = head_of(module, context.structure.maps, batches[-1], view)
                is_causal = isinstance(view, CausalView)
        everywhere = sum_over_processes(trainer, float(found is not None)) == trainer.world_size
        if not everywhere and not is_causal:
            self._tell_why("its logits are not just what a trained linear layer puts out")
        return found if everywhere else None

    def expected_head(
        self, structure: Structure, module: nn.Module, batch: Any
    ) -> LinearMap | None:
        """Return the layer that will be fitted, as a batch tells it before a run."""
        view, found = view_of(module, self._run.view), copy.copy(self._moments.predictions)
        with undisturbed(module):
            logits = view.logits(view.forward(module, detached(batch)))
            if logits is None or found is None:
                return None
            kind = found.of(logits, view.targets(batch), view.inputs(batch))
            is_of_classes = isinstance(kind, Categorical)
            return head_of(module, structure.maps, batch, view) if is_of_classes else None

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return the bytes of what is kept of one task."""
        head = self.expected_head(structure, module, batch)
        if head is None:
            return {}
        classes = head.outputs(named_weights(module))
        within = self._empty(head, torch.device("cpu"))
        return {"inputs of last layer": 4 * (classes + 1) * (head.inputs + 1) + within.most_nbytes}

    def given(
        self, context: TaskContext, head: LinearMap, batches: Sequence[Any]
    ) -> tuple[Tensor, Tensor]:
        """Return what the last layer is given on batches as the model is now, and its outputs."""
        module = context.pl_module
        with undisturbed(module), self._run.ready(context) as view:
            return given_to(module, head, batches, view)

    def given_before(self, context: TaskContext, head: LinearMap, batches: Sequence[Any]) -> Tensor:
        """Return what the last layer is given on batches under the newest snapshot."""
        with context.snapshots[-1].applied_to(context.pl_module):
            return self.given(context, head, batches)[0]

    def share_of_new(self, classes: Tensor) -> float:
        """Return the share of predictions that are of classes which no earlier task had."""
        known = torch.cat([mixture.counts[:-1].nonzero().flatten() for mixture in self.tasks])
        return int((~torch.isin(classes, known)).sum()) / max(len(classes), 1)

    def moved(self, inputs: Tensor, before: Tensor, classes: Tensor) -> MovedInputs:
        """Return what tells where inputs of earlier tasks lie from where the current ones do.

        They follow as far as those are of new classes. A task of known ones teaches the layers
        before to bring its inputs to where those of their classes lie, which stay.

        Args:
            inputs: Those of earlier tasks.
            before: The current ones, under the newest snapshot.
            classes: What is predicted of them now.
        """
        return MovedInputs(inputs, before, classes, self.share_of_new(classes))

    def fit(self, head: LinearMap, classes: int) -> bool:
        """Tell whether all tasks' inputs are known, and fit a layer that tells so many classes."""
        shapes = [mixture.means.shape for mixture in self.tasks]
        known = all(width == head.inputs and rows <= classes + 1 for rows, width in shapes)
        return self.covers_all and known and self.layer == head.modules[0]

    def generator(self) -> torch.Generator:
        """Return what draws the same for every merge: only what differs between them tells."""
        return torch.Generator().manual_seed(self._seed)

    def predicted(
        self,
        number: int,
        generator: torch.Generator,
        head: Callable[[Tensor], Tensor],
        as_then: bool,
    ) -> Predicted:
        """Draw inputs of earlier tasks, as many of each, with what is predicted of them.

        Args:
            number: How many, about.
            generator: Draws them, on the CPU.
            head: Gives their logits.
            as_then: Whether the class that was predicted at a task's end counts, and ``head`` only
                where too few of a class came.
        """
        share, found = max(1, number // len(self.tasks)), []
        for mixture in self.tasks:
            inputs, groups = mixture.drawn(share, generator)
            probabilities = head(inputs).softmax(dim=1)
            known = (groups < len(mixture.counts) - 1) & as_then
            probabilities[known] = torch.eye(probabilities.shape[1]).to(inputs)[groups[known]]
            found.append((inputs, probabilities))
        return Predicted(*(torch.cat(each) for each in zip(*found, strict=True)))

    def end_task(self, context: TaskContext) -> None:
        """Add the inputs of the task that ends, unless those of another are missing already."""
        if not self.covers_all:
            return
        head = self.head(context)
        if head is None:
            self.covers_all = False
            return
        with self._run.ready(context) as view:
            batches = self.measured_of(self._recent.batches, view)
            moved_batches = self.moved_of(batches, view)
        inputs, outputs = self.given(context, head, batches)
        classes, number = outputs.argmax(dim=1), outputs.shape[1]
        finite = rows_of_finite(inputs, outputs)
        mixture = InputMixture.of(
            inputs[finite],
            classes[finite],
            number,
            self._empty(head, inputs.device),
            lambda own: summed(context.trainer, own),
        )
        if context.trainer.world_size > 1:
            empty = {"": mixture.within.scaled(0.0)}
            means = mean_over_processes(context.trainer, {"": mixture.within.mean()}, empty)
            mixture = InputMixture(mixture.counts, mixture.means, means[""])
        tasks = [*self.tasks, mixture]
        if not self.tasks:
            self.layer = head.modules[0]
        elif context.snapshots and self.fit(head, number):
            before = self.given_before(context, head, moved_batches)[-KNOWN_INPUTS:]
            last = slice(len(inputs) - len(before), None)
            inputs, outputs, classes = inputs[last], outputs[last], classes[last]
            finite = rows_of_finite(inputs, outputs, before)
            earlier = torch.cat([each.means for each in self.tasks])
            moved = self.moved(earlier, before[finite], classes[finite]).by(inputs[finite])
            there = averaged(context.trainer, moved).split([len(each.means) for each in self.tasks])
            tasks[:-1] = map(InputMixture.at, self.tasks, there)
        if self.layer != head.modules[0]:
            self._leave_out(f"this task's was {head.modules[0]}, earlier ones' {self.layer}")
        elif not all(each.is_known for each in tasks):
            self._leave_out("too few of its inputs, or none that are finite, came in this task")
        else:
            self.tasks = tasks

    def _leave_out(self, why: str) -> None:
        """Note that a task is not among those that are known."""
        self.covers_all = False
        self._tell_why(why)

    def tell_that(self) -> None:
        """Say once that a layer is fitted."""
        self._tell(
            rank_zero_info,
            f"RecallCallback: the last layer, {self.layer}, is fitted anew with the merge at a "
            "task's end, as refit_head has it",
        )

    def _tell_why(self, why: str) -> None:
        """Say once why no layer is fitted."""
        said = f"RecallCallback: the model's last layer is merged as its rule has it: {why}, so "
        say = rank_zero_warn if self._is_asked_for else rank_zero_info
        self._tell(say, said + "refit_head does nothing")

    def _tell(self, say: Callable[[str], None], what: str) -> None:
        if what not in self._told:
            say(what)
        self._told.add(what)

    def sums(self) -> tuple[list[InputMixture], bool, str | None]:
        """Return all tasks' so far."""
        return self.tasks, self.covers_all, self.layer

    def put_back(self, sums: tuple[list[InputMixture], bool, str | None]) -> None:
        """Go back to them."""
        self.tasks, self.covers_all, self.layer = sums

    def start_task(self, context: TaskContext) -> None:
        """The first task forgets what another run has left."""
        if context.clock.visit == 0:
            self.put_back(([], True, None))

    def miss(self, ended: int) -> None:
        """After a resume from a checkpoint without them, fit no head: tasks would be forgotten."""
        self.put_back(([], not ended, None))
        if ended:
            rank_zero_warn(
                f"RecallCallback: the checkpoint holds no head_inputs of the {ended} task(s) that "
                "had ended, as of a run with refit_head=False or an earlier version: in this one "
                "the model's last layer is merged as its rule has it, and not fitted anew"
            )

    def resume(self, context: TaskContext) -> None:
        """After a resume, move what the checkpoint held to the module's device."""
        states = move_data_to_device(
            [each.state_dict() for each in self.tasks], context.pl_module.device
        )
        self.tasks = [InputMixture.from_state(state) for state in states]

    def state_dict(self) -> dict[str, Any]:
        """Return each task's tensors."""
        tasks = [each.state_dict() for each in self.tasks]
        return {"tasks": tasks, "covers_all": self.covers_all, "layer": self.layer}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        tasks = []
        for task, state in enumerate(state_dict["tasks"]):
            try:
                tasks.append(InputMixture.from_state(state))
            except (KeyError, AttributeError, TypeError, ValueError) as error:
                what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise FormError(f"statistics.head_inputs.tasks.{task} {what}") from error
        self.put_back((tasks, state_dict["covers_all"], state_dict.get("layer")))

    def measured_of(self, batches: Sequence[Any], view: ModelView) -> list[Any]:
        """Return those of a task's last batches on which inputs are measured."""
        return last_with(batches, self._settings.labels, view)

    def moved_of(self, batches: Sequence[Any], view: ModelView) -> list[Any]:
        """Return those of them on which it is measured how far inputs have moved."""
        return last_with(batches, KNOWN_INPUTS, view)

    def _empty(self, head: LinearMap, device: torch.device) -> Moments:
        settings = self._settings
        return empty_side(head.inputs, head.inputs > settings.width, settings.rank, device)

    @property
    def _of_classes(self) -> bool:
        found = self._moments.predictions
        return found is not None and isinstance(found.kind, Categorical)


def rows_of_finite(*of_each: Tensor) -> Tensor:
    """Return the numbers of those rows that are finite in all of some tensors.

    >>> rows_of_finite(torch.ones(3, 2), torch.tensor([[1.0], [torch.nan], [2.0]]))
    tensor([0, 2])
    """
    finite = torch.stack([each.isfinite().all(dim=1) for each in of_each])
    return finite.all(dim=0).nonzero().squeeze(1)
