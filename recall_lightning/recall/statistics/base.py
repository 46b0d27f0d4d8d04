"""What every statistic has: hooks in which it learns, and one in which it tells."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext


class Statistic:
    """Something that merge rules decide from, gathered while tasks are trained.

    It learns in its hooks, in the order in which they stand here; :meth:`give` measures and tells,
    and writes nothing. Every process calls every hook. Each raises a ValueError where something
    cannot be measured.

    Attributes:
        name: Under which its state is kept.
        meets: Which of the ``needs`` of rules it meets.
        form: The form of its state, a TypedDict.
        of_earlier_tasks: Whether it sums up tasks that have ended, which cannot be made up for.
    """

    name: ClassVar[str]
    meets: ClassVar[frozenset[str]] = frozenset()
    form: ClassVar[Any] = dict
    of_earlier_tasks: ClassVar[bool] = False

    @property
    def predictions(self) -> FoundPredictions | None:
        """What is known of the model's predictions, if this looks at them."""
        return None

    @property
    def of_maps(self) -> Mapping[str, Any]:
        """What this knows of linear maps in earlier tasks, as fields of ``MergeInputs``."""
        return {}

    @property
    def written(self) -> Sequence[Mapping[str, Tensor]]:
        """What a language model wrote itself before its first task, if this has it."""
        return []

    def notes(self, structure: Structure, module: nn.Module) -> Mapping[str, str]:
        """Say of weights that are merged otherwise than their rules have it how and why."""
        return {}

    def start_task(self, context: TaskContext) -> None:
        """Start a task; the first one forgets what another run has left."""

    def check_batch(self, context: TaskContext, batch: Any) -> Mapping[str, str]:
        """Try on a task's first batch what will be measured after hours; leave no trace of it.

        Returns:
            The names of weights that have turned out to be no linear maps, to the reason why.

        Raises:
            ValueError: If it cannot be measured.
        """
        return {}

    def complete(self, context: TaskContext, batch: Any) -> None:
        """After a resume, make usable what only a batch of its kind gives its structure."""

    def observe_batch(self, context: TaskContext, batch: Any) -> None:
        """See a batch before it is trained."""

    def observe_loss(self, context: TaskContext, loss: Tensor) -> None:
        """See a loss before it is run backward."""

    def observe_gradients(self, context: TaskContext, optimizer: Optimizer) -> None:
        """See the gradients before an optimizer step."""

    def observe_step(self, context: TaskContext) -> None:
        """See optimizers and weights after an optimizer step, before any merge."""

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return by what it is for what this will hold while a task trains that is not the first.

        Args:
            structure: That of the model.
            module: The model, which may be run.
            batch: A training batch on its device.
            snapshots: How many are kept.
        """
        return {}

    def prepare_merge(self, context: TaskContext, rule: MergeRule, last: bool) -> bool:
        """Learn what a merge by ``rule`` lacks; tell whether it can be made.

        Args:
            context: The task.
            rule: It needs this statistic.
            last: Whether this is the task's last merge, which makes do with what there is.
        """
        return True

    def give(self, context: TaskContext, rule: MergeRule) -> Sequence[Mapping[str, Any]]:
        """Return what a rule needs, for each snapshot: fields of ``MergeInputs`` by name."""
        return [{} for _ in context.snapshots]

    def end_task(self, context: TaskContext) -> None:
        """Add what the task that ends depends on, under its last weights."""

    def take_ended(self) -> Mapping[str, Any]:
        """Hand over what is known of the task that has ended beside what was known before.

        Fields of ``MergeInputs``, of a statistic that goes back to before the first task.
        """
        return {}

    def sums(self) -> Any:
        """Return what is summed up of tasks so far, which no hook changes."""

    def put_back(self, sums: Any) -> None:
        """Go back to what :meth:`sums` returned, as if no task had ended since."""

    def forget_samples(self) -> None:
        """Forget the samples of a task that has ended, after all that measure on them."""

    def release(self, context: TaskContext) -> None:
        """At a fit's end, leave nothing on the module."""

    def resume(self, context: TaskContext) -> None:
        """After a resume, bring what the checkpoint held to the module's device."""

    def check_fits(self, context: TaskContext) -> None:
        """After a resume in the midst of a task, check that what the checkpoint held fits it.

        Raises:
            ValueError: Naming what does not.
        """

    def leave_snapshots(self, left: Sequence[int]) -> None:
        """After a resume, forget what was measured under all snapshots but those at ``left``."""

    def miss(self, ended: int) -> None:
        """After a resume from a checkpoint that holds none of this, know how many tasks ended."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in plain Python and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
