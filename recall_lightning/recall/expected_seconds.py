"""How long RecallCallback's work will take beside training, known before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from recall_lightning.checks import check_count
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.structure import Structure
from recall_lightning.recall.front import POINTS
from recall_lightning.recall.measured_work import MeasuredWork, Work
from recall_lightning.recall.parts import Parts
from recall_lightning.recall.training_estimates import estimate_is_due
from recall_lightning.weights.naming import running_statistics


@dataclass(frozen=True)
class ExpectedSeconds:
    """What a callback does in a process beside training, by what it is for, and how long it takes.

    Attributes:
        steps: Of a task, of one batch each.
        task: In a task that is not the first.
        run: On top of that in the first, once a run.
        training_seconds: Those of its passes forward and backward, without the optimizer, the
            loading of batches and the Trainer's own loop.

    Example:
        >>> task = {"estimates": Work(10, 0, 0, 0.5), "moments of the task": Work(0, 32, 0, 1.5)}
        >>> print(ExpectedSeconds(1000, task, {}, training_seconds=40.0))
        a task of 1000 steps       forward  backward    merges   seconds
        estimates                       10         0         0     0.500
        moments of the task              0        32         0     1.500
        together                        10        32         0     2.000
        its training                     0      1000         0    40.000
        together / training                                        5.0 %
    """

    steps: int
    task: Mapping[str, Work]
    run: Mapping[str, Work]
    training_seconds: float

    @property
    def together(self) -> Work:
        """All that is done in a task that is not the first."""
        return sum(self.task.values(), Work())

    @property
    def share(self) -> float:
        """The seconds of that, as a part of those of training."""
        return self.together.seconds / self.training_seconds

    def __str__(self) -> str:
        heads = "".join(f"{head:>10}" for head in ("forward", "backward", "merges", "seconds"))
        training = Work(backward=self.steps, seconds=self.training_seconds)
        rows = [f"{f'a task of {self.steps} steps':<24}{heads}"]
        rows += _rows({**self.task, "together": self.together, "its training": training})
        rows.append(f"{'together / training':<24}{100 * self.share:>38.1f} %")
        if self.run:
            rows += ["", f"{'once a run, on top':<24}{heads}", *_rows(self.run)]
        return "\n".join(rows)


def _rows(work: Mapping[str, Work]) -> list[str]:
    return [
        f"{what:<24}{each.forward:>10}{each.backward:>10}{each.merges:>10}{each.seconds:>10.3f}"
        for what, each in work.items()
    ]


def expected_seconds(
    module: nn.Module,
    batch: Any,
    steps: int,
    structure: Structure,
    parts: Parts,
    merges_first_task: bool,
    merges_after: Callable[[int, int], bool],
) -> ExpectedSeconds:
    """Count what a callback's parts do in a task, and measure how long each piece of that takes.

    Args:
        module: The model.
        batch: A training batch.
        steps: Of a task, of one batch each.
        structure: The model's blocks and maps.
        parts: The parts.
        merges_first_task: Whether the model knew something before its first task.
        merges_after: Tells of a step and of a task's length whether a merge is due.

    Raises:
        ValueError: If ``steps`` is no count, or what the model returns has no gradient.
    """
    check_count("steps", steps)
    work = MeasuredWork(module, batch, structure, parts)
    due = [step for step in range(1, steps + 1) if merges_after(step, steps)]
    recalibrates = parts.buffers == "recalibrate" and bool(running_statistics(module))
    plan = _Plan(work, parts, steps, due, merges_first_task, recalibrates)
    last_layer = plan.last_layer() if steps in due else Work()
    task = {
        "copies of batches": work.copies(steps),
        "trial of a first batch": plan.trial(),
        "typical samples": work.chosen_samples(),
        "estimates": plan.estimates(),
        "merges before the end": plan.merges(parts.rule, [step for step in due if step < steps]),
        "merge at the end": plan.last_merge() if steps in due else Work(),
        "moments of the task": plan.task_moments(),
        "last layer": last_layer,
        "next snapshot": Work() if last_layer != Work() else plan.next_snapshot(),
    }
    return ExpectedSeconds(
        steps,
        {what: each for what, each in task.items() if each != Work()},
        plan.known_before(),
        steps * work.training_step,
    )


@dataclass(frozen=True)
class _Plan:
    """Counts what a task takes.

    Attributes:
        work: Measures it.
        parts: The parts.
        steps: Of the task.
        due: After which of them merges are.
        merges_first_task: Whether the model knew something before its first task.
        recalibrates: Whether each merge measures running statistics anew.
    """

    work: MeasuredWork
    parts: Parts
    steps: int
    due: Sequence[int]
    merges_first_task: bool
    recalibrates: bool

    def kept(self, step: int) -> int:
        """How many batches are kept after a step."""
        return min(step, self.work.most_batches)

    def trial(self) -> Work:
        """Try the task's first batch."""
        runs = (self.parts.plasticity is not None) + self.recalibrates
        return self.work.forward(runs) + self.work.trial()

    def estimates(self) -> Work:
        """Estimate what is forgotten, and how a batch is predicted.

        That is in the course of the task, and at its end where no merge does so there.
        """
        moments = self.work.moments
        if self.parts.drift is not None or moments is None or not moments.curvature:
            return Work()
        others = set(range(1, self.steps)).difference(self.due)
        times = sum(estimate_is_due(step, self.steps) for step in others)
        at_the_end = self.steps not in self.due
        batches = times + at_the_end * self.work.predicted(self.kept(self.steps))
        return self.work.forward(2 * batches) + (times + at_the_end) * self.work.estimate()

    def merges(self, rule: MergeRule, steps: Sequence[int], tries: int = 1) -> Work:
        """Measure for a merge after each of some steps, and make it so often."""
        if not steps:
            return Work()
        similar = self.work.similarity(rule) if "similarity" in rule.needs else Work()
        work = len(steps) * (similar + self.work.record())
        for batches, times in Counter(map(self.kept, steps)).items():
            if "new_moments" in rule.needs:
                work += times * self.work.measured(batches)
            work += self.work.forward(times * tries * batches * self.recalibrates)
        return work + self.work.merges(rule, len(steps) * tries)

    def last_merge(self) -> Work:
        """Find the balance for ``plasticity``, or see what the merge costs the task's gain."""
        assert self.parts.end_rule is not None
        tries, kept = 1 if self.parts.plasticity is None else POINTS + 1, self.kept(self.steps)
        losses = (2 + tries) * self.work.compared(kept)  # snapshot, live, merged
        of_written = 3 if self.merges_first_task and self.work.writes else 0
        others = self.work.forward(losses + of_written + kept * self.recalibrates)
        return self.merges(self.parts.end_rule, [self.steps], tries) + others

    def task_moments(self) -> Work:
        """Measure what the task that ends depends on."""
        moments = self.work.moments
        if moments is not None and moments.settings.source == "generated":
            return self.work.written
        kept = self.kept(self.steps)
        return self.work.measured(kept) + self.work.head_inputs(kept)

    def last_layer(self) -> Work:
        """Fit a classifier's last layer with each merge that is tried, where earlier tasks were.

        Where it is fitted only after a merge that costs much, it is not.
        """
        fits, kept = 1 - self.parts.last_layer.only_costly, self.kept(self.steps)
        tries = fits if self.parts.plasticity is None else POINTS
        return self.work.fitted_heads(tries, kept) + self.work.moved_head_inputs(kept)

    def next_snapshot(self) -> Work:
        """Merge once more, where the next snapshot is not the model and no last layer is fitted."""
        moments, rule = self.work.moments, self.parts.end_rule
        if moments is None or rule is None or self.parts.plasticity is None:
            return Work()
        is_known = self.work.writes or moments.prior.is_given
        made = is_known and rule.weighs_moments and self.steps in self.due
        return self.work.merges(rule, 1) if made else Work()

    def known_before(self) -> dict[str, Work]:
        """Measure what the model knew before its first task, if anything is known of that."""
        moments = self.work.moments
        if moments is None or not (self.merges_first_task and self.due):
            return {}
        if self.work.writes:
            return {"prior, written itself": self.work.written}
        if moments.prior.is_given:
            number = moments.prior.given_batches
            return {"prior, as given": self.work.forward(number) + self.work.measured(number)}
        for step in self.due:
            rule = self.parts.end_rule if step == self.steps else self.parts.rule
            if rule is not None and "new_moments" in rule.needs:
                return {"the task in its place": self.work.measured(self.kept(step))}
        return {}
