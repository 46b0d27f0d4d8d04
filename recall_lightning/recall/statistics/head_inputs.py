"""What the last layer of a classifier was given in each task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from recall_lightning.callbacks._trainer.strategies import is_sharded
from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.head import given_to, head_of
from recall_lightning.measuring.input_mixture import InputMixture
from recall_lightning.measuring.input_moments import empty_side
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import Moments
from recall_lightning.measuring.predictions.categorical import Categorical
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.merging.head import Predicted
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.process_means import mean_over_processes, sum_over_processes, summed
from recall_lightning.recall.settings import MomentSettings
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.recall.statistics.moments import MapMoments
from recall_lightning.recall.statistics.recent_batches import RecentBatches, last_with
from recall_lightning.weights.naming import named_weights


class HeadInputsState(TypedDict):
    """What a checkpoint holds of them: a mixture a task."""

    tasks: list[dict[str, Any]]
    covers_all: bool


class HeadInputs(Statistic):
    """For each task, where the inputs of the model's last layer lay, class by predicted class.

    They are measured at a task's end, under its last weights, on the batches of which moments are.
    There are none of a model that predicts no classes, or whose logits are not a layer's outputs,
    and none of a sharded one.

    Args:
        recent: The last batches, on which the model is run.
        settings: Of moments: how many labels, and which width is wide.
        run: How the model is run.
        moments: What is known of the model's predictions.

    Attributes:
        tasks: The mixture of each task so far.
        covers_all: Whether every task that has ended is among them.
    """

    name = "head_inputs"
    form = HeadInputsState

    def __init__(
        self, recent: RecentBatches, settings: MomentSettings, run: ModelRun, moments: MapMoments
    ) -> None:
        self.tasks: list[InputMixture] = []
        self.covers_all = True
        self._recent, self._settings, self._run, self._moments = recent, settings, run, moments
        self._told = False  # that a sharded one has none

    def head(self, context: TaskContext) -> LinearMap | None:
        """Return the layer whose outputs are the classes' logits, in all processes alike.

        It is found by running the model on the last batch.
        """
        module, trainer = context.pl_module, context.trainer
        if not self._of_classes:
            return None
        if is_sharded(trainer):
            if not self._told:
                rank_zero_info(
                    "RecallCallback: a sharded model's last layer is merged by the rule, and not "
                    "fitted anew"
                )
            self._told = True
            return None
        batches, found = self._recent.batches, None
        if batches:
            with undisturbed(module), self._run.ready(context) as view:
                found = head_of(module, context.structure.maps, batches[-1], view)
        everywhere = sum_over_processes(trainer, float(found is not None)) == trainer.world_size
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

    def fit(self, head: LinearMap) -> bool:
        """Tell whether all tasks' inputs are known, and are such as the layer takes."""
        widths = {mixture.means.shape[1] for mixture in self.tasks}
        return self.covers_all and widths == {head.inputs}

    def predicted(
        self, number: int, generator: torch.Generator, head: Callable[[Tensor], Tensor]
    ) -> Predicted:
        """Draw inputs of earlier tasks, as many of each.

        Args:
            number: How many, about.
            generator: Draws them, on the CPU.
            head: Gives the logits of inputs.
        """
        share = max(1, number // len(self.tasks))
        inputs = torch.cat([mixture.drawn(share, generator) for mixture in self.tasks])
        return Predicted(inputs, head(inputs).softmax(dim=1))

    def end_task(self, context: TaskContext) -> None:
        """Add the inputs of the task that ends."""
        head = self.head(context)
        if head is None:
            self.covers_all = False
            return
        with self._run.ready(context) as view:
            batches = self.measured_of(self._recent.batches, view)
        inputs, outputs = self.given(context, head, batches)
        mixture = InputMixture.of(
            inputs,
            outputs.argmax(dim=1),
            outputs.shape[1],
            self._empty(head, inputs.device),
            lambda own: summed(context.trainer, own),
        )
        if not (bool(mixture.means.isfinite().all()) and bool(mixture.within.trace.isfinite())):
            self.covers_all = False
            return
        if context.trainer.world_size > 1:
            empty = {"": mixture.within.scaled(0.0)}
            means = mean_over_processes(context.trainer, {"": mixture.within.mean()}, empty)
            mixture = InputMixture(mixture.counts, mixture.means, means[""])
        self.tasks = [*self.tasks, mixture]

    def sums(self) -> tuple[list[InputMixture], bool]:
        """Return all tasks' so far."""
        return self.tasks, self.covers_all

    def put_back(self, sums: tuple[list[InputMixture], bool]) -> None:
        """Go back to them."""
        self.tasks, self.covers_all = sums

    def start_task(self, context: TaskContext) -> None:
        """The first task forgets what another run has left."""
        if context.clock.visit == 0:
            self.put_back(([], True))

    def miss(self, ended: int) -> None:
        """After a resume from a checkpoint without them, fit no head: tasks would be forgotten."""
        self.put_back(([], not ended))
        if ended:
            rank_zero_warn(
                f"RecallCallback: the checkpoint holds no head_inputs of the {ended} task(s) that "
                "had ended: the model's last layer is merged by the rule, as refit_head=False says"
            )

    def resume(self, context: TaskContext) -> None:
        """After a resume, move what the checkpoint held to the module's device."""
        states = move_data_to_device(
            [each.state_dict() for each in self.tasks], context.pl_module.device
        )
        self.tasks = [InputMixture.from_state(state) for state in states]

    def state_dict(self) -> dict[str, Any]:
        """Return each task's tensors."""
        return {"tasks": [each.state_dict() for each in self.tasks], "covers_all": self.covers_all}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.tasks = [InputMixture.from_state(each) for each in state_dict["tasks"]]
        self.covers_all = state_dict["covers_all"]

    def measured_of(self, batches: Sequence[Any], view: ModelView) -> list[Any]:
        """Return those of a task's last batches on which inputs are measured."""
        return last_with(batches, self._settings.labels, view)

    def _empty(self, head: LinearMap, device: torch.device) -> Moments:
        settings = self._settings
        return empty_side(head.inputs, head.inputs > settings.width, settings.rank, device)

    @property
    def _of_classes(self) -> bool:
        found = self._moments.predictions
        return found is not None and isinstance(found.kind, Categorical)
