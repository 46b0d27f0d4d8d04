"""The statistics that a schedule's rules need, together."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.checks import FormError, check_form
from recall_lightning.measuring.predictions import FoundPredictions
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.statistics.base import Statistic


class NeededStatistics:
    """Passes every hook on to the statistics that are needed, and to no other.

    Args:
        available: All there are, in the order in which they see a hook.
        rules: Those of the schedule.
        others: Names of statistics that something else than a rule needs.

    Raises:
        ValueError: On construction if a rule needs what no statistic meets; from every hook where
            something cannot be measured.
    """

    def __init__(
        self, available: Sequence[Statistic], rules: Sequence[MergeRule], others: Sequence[str] = ()
    ) -> None:
        known = {need for statistic in available for need in statistic.meets}
        for rule in rules:
            for need in sorted(rule.needs - known):
                raise ValueError(
                    f"{type(rule).__name__} needs {need!r}, which nothing measures: use "
                    f"{', '.join(sorted(known))}"
                )
        needs = {need for rule in rules for need in rule.needs}
        self.active = [s for s in available if s.meets & needs or s.name in others]

    @property
    def predictions(self) -> FoundPredictions | None:
        """What is known of the model's predictions; None where no statistic looks at them."""
        return next((s.predictions for s in self.active if s.predictions is not None), None)

    @property
    def of_earlier_tasks(self) -> Mapping[str, Any]:
        """What is known of linear maps in earlier tasks, as fields of ``MergeInputs``."""
        return {name: value for s in self.active for name, value in s.of_maps.items()}

    @property
    def written(self) -> Sequence[Mapping[str, Tensor]]:
        """What a language model wrote itself before its first task, as far as it is kept."""
        return next((s.written for s in self.active if s.written), [])

    def notes(self, structure: Structure, module: nn.Module) -> dict[str, str]:
        """Return what all say of weights that are merged in a way of their own."""
        return {name: how for s in self.active for name, how in s.notes(structure, module).items()}

    def start_task(self, context: TaskContext) -> None:
        """Start a task."""
        for statistic in self.active:
            statistic.start_task(context)

    def check_batch(self, context: TaskContext, batch: Any) -> dict[str, str]:
        """Try on a task's first batch what will be measured; return which are no linear maps."""
        found = [statistic.check_batch(context, batch) for statistic in self.active]
        return {name: reason for reasons in found for name, reason in reasons.items()}

    def complete(self, context: TaskContext, batch: Any) -> None:
        """Make usable what a batch gives its structure."""
        for statistic in self.active:
            statistic.complete(context, batch)

    def observe_batch(self, context: TaskContext, batch: Any) -> None:
        """See a batch before it is trained."""
        for statistic in self.active:
            statistic.observe_batch(context, batch)

    def observe_loss(self, context: TaskContext, loss: Tensor) -> None:
        """See a loss before it is run backward."""
        for statistic in self.active:
            statistic.observe_loss(context, loss)

    def observe_gradients(self, context: TaskContext, optimizer: Optimizer) -> None:
        """See the gradients before an optimizer step."""
        for statistic in self.active:
            statistic.observe_gradients(context, optimizer)

    def observe_step(self, context: TaskContext) -> None:
        """See what an optimizer step has left."""
        for statistic in self.active:
            statistic.observe_step(context)

    def expected_bytes(
        self, structure: Structure, module: nn.Module, batch: Any, snapshots: int
    ) -> dict[str, int]:
        """Return what all will hold while a task trains, by what it is for."""
        expected = [one.expected_bytes(structure, module, batch, snapshots) for one in self.active]
        return {what: size for own in expected for what, size in own.items()}

    def prepare_merge(self, context: TaskContext, rule: MergeRule, last: bool) -> bool:
        """Tell whether all that ``rule`` needs is there, or can be had now."""
        needed = [s for s in self.active if s.meets & rule.needs]
        return all(s.prepare_merge(context, rule, last) for s in needed)

    def give(self, context: TaskContext, rule: MergeRule) -> list[dict[str, Any]]:
        """Return what ``rule`` needs for each snapshot, as fields of ``MergeInputs``."""
        together: list[dict[str, Any]] = [{} for _ in context.snapshots]
        for statistic in self.active:
            if statistic.meets & rule.needs:
                for fields, own in zip(together, statistic.give(context, rule), strict=True):
                    fields |= own
        return together

    def end_task(self, context: TaskContext) -> None:
        """Add what the task that ends depends on; no sample of it is held from then on."""
        for statistic in self.active:
            statistic.end_task(context)
        self.forget_samples()

    def take_ended(self) -> dict[str, Any]:
        """Hand over what is known of the task that has ended, and of all before it."""
        return {name: value for s in self.active for name, value in s.take_ended().items()}

    def sums(self) -> list[Any]:
        """Return what each has summed up of tasks so far."""
        return [statistic.sums() for statistic in self.active]

    def put_back(self, sums: Sequence[Any]) -> None:
        """Go back to what :meth:`sums` returned."""
        for statistic, own in zip(self.active, sums, strict=True):
            statistic.put_back(own)

    def forget_samples(self) -> None:
        """Forget the samples of a task that has ended."""
        for statistic in self.active:
            statistic.forget_samples()

    def release(self, context: TaskContext) -> None:
        """Leave nothing on the module."""
        for statistic in self.active:
            statistic.release(context)

    def check_fits(self, context: TaskContext) -> None:
        """Check that what a checkpoint held fits the task in whose midst it stands."""
        for statistic in self.active:
            statistic.check_fits(context)

    def resume(self, context: TaskContext) -> None:
        """Bring what a checkpoint held to the module's device."""
        for statistic in self.active:
            statistic.resume(context)

    def leave_snapshots(self, left: Sequence[int]) -> None:
        """Forget what was measured under snapshots that are gone."""
        for statistic in self.active:
            statistic.leave_snapshots(left)

    def state_dict(self) -> dict[str, Any]:
        """Return each one's state by name."""
        return {statistic.name: statistic.state_dict() for statistic in self.active}

    def check_forms(self, state_dict: Mapping[str, Any]) -> None:
        """Check that the state of each has the form that it is saved in.

        Raises:
            ValueError: Naming an entry that is missing or of another type.
        """
        for statistic in self.active:
            if statistic.name in state_dict:
                own = state_dict[statistic.name]
                check_form(own, statistic.form, f"statistics.{statistic.name}")
                if not own.get("processes", [None]):
                    raise FormError(f"statistics.{statistic.name}.processes is empty")

    def load_state_dict(self, state_dict: Mapping[str, Any], ended: int = 0) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state_dict: The state of each by name; one that is not in it starts empty, and says so.
            ended: How many tasks had ended by then.

        Raises:
            ValueError: If one that sums them up is not in it.
        """
        for statistic in self.active:
            if statistic.name in state_dict:
                statistic.load_state_dict(state_dict[statistic.name])
            elif statistic.of_earlier_tasks and ended:
                raise ValueError(
                    f"the checkpoint holds no {statistic.name}, which the rules need now, and it "
                    f"cannot be had of the {ended} task(s) that had ended: resume with rules that "
                    f"need what it holds ({', '.join(state_dict) or 'nothing'})"
                )
            elif statistic.meets:
                rank_zero_warn(
                    f"RecallCallback: the checkpoint holds no {statistic.name}, which the rules "
                    "need now: it is gathered from here on"
                )
            else:
                statistic.miss(ended)
