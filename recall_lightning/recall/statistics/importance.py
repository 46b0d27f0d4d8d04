"""How much the tasks so far depend on each weight, gathered while they are trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.stored_state import check_tensors
from recall_lightning.measuring.architecture import find_generator
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.settings import ImportanceSettings
from recall_lightning.recall.squared_gradients import SquaredGradients, SquaredGradientsState
from recall_lightning.recall.statistics.base import Statistic
from recall_lightning.weights.growth import has_grown, padded
from recall_lightning.weights.naming import find_weights, named_weights
from recall_lightning.weights.sharding import local, sharded_like, total

_BYTES = 4  # of a number in float32


class ImportanceState(TypedDict):
    """What a checkpoint holds of it."""

    by_name: dict[str, Tensor]
    tasks: int
    found: str
    gradients: SquaredGradientsState


class ParameterImportance(Statistic):
    """The importance of every weight's elements: squared gradients, summed over tasks.

    Of each task it is divided by its mean over the model, so that tasks count alike. Adam's mean
    reaches back over the boundary where a task has fewer steps than 1 / (1 − β₂): there
    ``"gradients"`` tells tasks apart better.

    Args:
        settings: The source: ``"optimizer"`` reads Adam's running mean of squared gradients,
            ``exp_avg_sq``, at the task's end, at no cost; ``"gradients"`` averages them over its
            last ``steps`` optimizer steps; ``"auto"`` is the first, or the second where an
            optimizer has no such state.
        beside_curvature: Whether rules also use curvature, which tells more.

    Attributes:
        by_name: Weight name to importance, float32 in the weight's shape; empty before the end of
            the first task.
        tasks: How many tasks it sums up.
    """

    name = "importance"
    meets = frozenset({"importance"})
    form = ImportanceState
    of_earlier_tasks = True

    def __init__(self, settings: ImportanceSettings, beside_curvature: bool = False) -> None:
        self.source = settings.source
        self.by_name: dict[str, Tensor] = {}
        self.tasks = 0
        self._beside_curvature = beside_curvature
        self._found = settings.source  # where "auto" finds it, from a task's first step on
        self._gradients = SquaredGradients(settings.steps)
        self._step_is_due = False  # the first since start_task, which may come within a task

    def start_task(self, context: TaskContext) -> None:
        """Forget the gradients of the last task; before the first one, everything."""
        if context.clock.visit == 0:
            self.by_name, self.tasks = {}, 0
        self._gradients.start_task()
        self._found, self._step_is_due = self.source, True
        self._fit_to(named_weights(context.pl_module))
        told = self._beside_curvature and find_generator(context.pl_module) is not None
        if context.snapshots and not self.by_name and not told:
            rank_zero_info(
                "RecallCallback: nothing is known of what the model depended on before its first "
                "task, so in the merges of that task every parameter counts alike; "
                "merge_first_task=False leaves it unmerged"
            )

    def observe_gradients(self, context: TaskContext, optimizer: Optimizer) -> None:
        """See an optimizer's gradients before its step."""
        if self._found != "optimizer":
            self._gradients.observe(context.clock, optimizer, context.pl_module)

    def observe_step(self, context: TaskContext) -> None:
        """After the first step, refuse an optimizer that the source cannot be read from."""
        optimizers = context.trainer.optimizers
        skipped = any("betas" in o.defaults and not o.state for o in optimizers)
        first = self._step_is_due or context.clock.step_in_task == 1
        self._step_is_due = first and skipped  # as AMP does with steps that overflow
        if not first or skipped or self.source == "gradients":
            return
        try:
            optimizer_importance(optimizers, _weights_of_task(context))
            self._found = "optimizer"
        except ValueError:
            if self.source == "optimizer":
                raise
            self._found = "gradients"
            rank_zero_info(
                "the optimizer keeps no squared gradients (Adam's exp_avg_sq): importance is "
                f"averaged from the gradients of each task's last {self._gradients.steps} steps"
            )

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return the bytes of a number a trainable parameter, and of running means beside it."""
        own = sum(
            _BYTES * weight.numel()
            for weight in named_weights(module).values()
            if weight.requires_grad
        )
        gathered = {"squared gradients": own} if self.source == "gradients" else {}
        return {"importance": own, **gathered}

    def give(self, context: TaskContext, rule: MergeRule) -> Sequence[Mapping[str, Any]]:
        """Return the importance to all earlier tasks, the same for each snapshot."""
        own = {"importance": self.by_name, "earlier_tasks": max(1, self.tasks)}
        return [own for _ in context.snapshots]

    def end_task(self, context: TaskContext) -> None:
        """Add the task's importance."""
        if self._found != "gradients":
            added = optimizer_importance(context.trainer.optimizers, _weights_of_task(context))
        else:
            added = self._gradients.mean()
        sums = [total(float(local(tensor).double().sum()), tensor) for tensor in added.values()]
        mean = sum(sums) / max(1, sum(tensor.numel() for tensor in added.values()))
        if not 0 < mean < math.inf:
            rank_zero_warn(
                "the task's squared gradients are none, zero or not finite (a fit that stopped "
                "early?): its importance is left out of later merges"
            )
            return
        for name, tensor in added.items():
            own, earlier = tensor.float() / mean, self.by_name.get(name)
            if earlier is not None and earlier.shape == own.shape:
                own += earlier
            self.by_name[name] = own
        self.tasks += 1

    def sums(self) -> tuple[dict[str, Tensor], int]:
        """Return the importance so far, and of how many tasks it is."""
        return dict(self.by_name), self.tasks

    def put_back(self, sums: tuple[dict[str, Tensor], int]) -> None:
        """Go back to it."""
        self.by_name, self.tasks = dict(sums[0]), sums[1]

    def resume(self, context: TaskContext) -> None:
        """After a resume, move the tensors to the device, and shard them as the weights are."""
        weights = named_weights(context.pl_module)
        self.by_name = move_data_to_device(self.by_name, context.pl_module.device)
        for name, known in self.by_name.items():
            if name in weights and weights[name].shape == known.shape:
                self.by_name[name] = sharded_like(known, weights[name])

    def check_fits(self, context: TaskContext) -> None:
        """Check the shapes of what is known of the model's weights."""
        weights = _weights_of_task(context)
        known = {name: tensor for name, tensor in self.by_name.items() if name in weights}
        check_tensors(known, weights, "statistics.importance.by_name")
        check_tensors(self._gradients.mean(), weights, "statistics.importance.gradients.mean")

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and the number of tasks."""
        return {
            "by_name": self.by_name,
            "tasks": self.tasks,
            "found": self._found,
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.by_name, self.tasks = dict(state_dict["by_name"]), state_dict["tasks"]
        if self.source == "auto":
            self._found = state_dict["found"]
        self._gradients.load_state_dict(state_dict["gradients"])

    def _fit_to(self, weights: Mapping[str, Tensor]) -> None:
        """Before a task, give weights that have grown no importance where they are new.

        What is known of weights that have changed their shape otherwise is dropped, with a warning.
        """
        changed = []
        for name, known in list(self.by_name.items()):
            shape = weights[name].shape if name in weights else known.shape
            if known.shape == shape:
                continue
            if has_grown(known.shape, shape):
                self.by_name[name] = padded(known, shape)
            else:
                changed.append(name)
                del self.by_name[name]
        if changed:
            rank_zero_warn(
                f"the shape of {', '.join(changed[:3])} has changed: its importance to earlier "
                "tasks is dropped"
            )


def _weights_of_task(context: TaskContext) -> dict[str, Tensor]:
    """Name the weights that are trained in a task, though they may be frozen at the moment."""
    module = context.pl_module
    return find_weights(module, context.structure.weights) | named_weights(module)


def optimizer_importance(
    optimizers: list[Optimizer], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read Adam's running means of squared gradients, without their bias towards zero.

    They are those of torch's Adam, AdamW (foreach, fused, capturable or not), NAdam and RAdam, and
    of whatever else keeps ``exp_avg_sq`` in full precision.

    Args:
        optimizers: The Trainer's.
        weights: The weights by name; others have no importance.

    Returns:
        Weight name to a tensor of its shape; a weight without any step has none.

    Raises:
        ValueError: If no optimizer holds such a state.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> layer(torch.tensor([[1.0, 2.0]])).sum().backward()
        >>> optimizer.step()
        >>> weights = dict(layer.named_parameters())
        >>> optimizer_importance([optimizer], weights)["weight"].round(decimals=4)
        tensor([[1., 4.]])
    """
    names = {id(weight): name for name, weight in weights.items()}
    found: dict[str, Tensor] = {}
    without: list[str] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                name, second = names.get(id(parameter)), state.get("exp_avg_sq")
                if (
                    name is None
                    or not isinstance(second, Tensor)
                    or second.shape != parameter.shape
                ):
                    # an Adam without any state has not stepped yet
                    stepped = bool(state) or "betas" not in optimizer.defaults
                    if name is not None and parameter.grad is not None and stepped:
                        without.append(name)
                    continue
                beta, steps = group.get("betas", (0.0, 0.0))[1], float(state.get("step", 0))
                unbiased = 1 - beta**steps if steps else 1.0
                found[name] = second.detach().float() / unbiased
    if not found or without:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        of = f" of {without[0]!r}" if found else ""
        raise ValueError(
            f"the importance of weights is read from Adam's exp_avg_sq, which {kinds} does not "
            f"keep{of}: use importance.source='gradients'"
        )
    return found
