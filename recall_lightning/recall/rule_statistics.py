"""What merge rules decide from, gathered while a task is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.clock import TaskClock
from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.generation import find_generator
from recall_lightning.merging.lora.pairs import LoraPair
from recall_lightning.merging.rules import MergeInputs, MergeRule
from recall_lightning.recall.buffers import recalibrate
from recall_lightning.recall.model_run import ProbeRun
from recall_lightning.recall.statistics.importance import Importance
from recall_lightning.recall.statistics.moments import TaskMoments
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.statistics.samples import Probe
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot


class RuleStatistics:
    """Gathers what the rules of a schedule use, and nothing else.

    Similarities come from a :class:`Probe`, importance from :class:`Importance`, moments from
    :class:`TaskMoments`.

    Args:
        rules: Those of the schedule, in the loop and at a task's end.
        run: How the model is run on a batch.
        probe: Measures representations.
        importance: Sums up importance.
        moments: Sums up moments.
        recent: The last batches, for the moments and for recalibration.
        recalibrates: Whether running statistics are to be measured anew.

    Raises:
        ValueError: From every method, where something cannot be measured.
    """

    def __init__(
        self,
        rules: Sequence[MergeRule],
        run: ProbeRun,
        probe: Probe,
        importance: Importance,
        moments: TaskMoments,
        recent: RecentBatches,
        recalibrates: bool,
    ) -> None:
        self.uses_representations = any(rule.uses_representations for rule in rules)
        self.uses_importance = any(rule.uses_importance for rule in rules)
        self.uses_moments = any(rule.uses_moments or rule.uses_curvature for rule in rules)
        self.probe = probe
        self.importance = importance
        self.moments = moments
        self.recent = recent
        self.recalibrates = recalibrates
        self._run = run
        self._pairs: Sequence[LoraPair] = ()

    def know_model(
        self, pl_module: LightningModule, blocks: Sequence[Block], pairs: list[LoraPair]
    ) -> dict[str, str]:
        """Learn the model's structure; return what is merged in a way of its own, by name."""
        self._run.blocks, self._pairs = blocks, pairs
        return self.moments.find_maps(pl_module, pairs) if self.uses_moments else {}

    def start_task(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        task: int,
        snapshots: Sequence[Snapshot],
    ) -> None:
        """Start a task: with no snapshots one that is not merged, only learned from.

        The first task forgets what another run has left.
        """
        if self.uses_moments:
            self.moments.check_source(pl_module)
        weights = named_weights(pl_module)
        self.recent.clear()
        self.importance.start_task(task)
        self.importance.fit_to(weights)
        self.moments.start_task(task, weights)
        writes = self.moments.curvature and find_generator(pl_module) is not None
        if snapshots and self.uses_importance and not self.importance.by_name and not writes:
            rank_zero_info(
                "RecallCallback: nothing is known of what the model depended on before its first "
                "task, so there every parameter counts alike; merge_first_task=False leaves that "
                "task unmerged"
            )
        if snapshots and self.uses_representations:
            self.probe.start_task(trainer, pl_module, snapshots)

    def observe_batch(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        snapshots: Sequence[Snapshot],
        batch: Any,
    ) -> None:
        """See a batch before it is trained."""
        if self.uses_moments or self.recalibrates:
            self.recent.keep(batch)
        if snapshots and self.uses_representations:
            self.probe.observe(trainer, pl_module, snapshots, batch)

    def observe_gradients(
        self, clock: TaskClock, optimizer: Optimizer, pl_module: LightningModule
    ) -> None:
        """See the gradients before an optimizer step."""
        if self.uses_importance:
            self.importance.observe(clock, optimizer, pl_module)

    def check_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a task's first step, refuse optimizers that importance cannot be read from."""
        if self.uses_importance:
            self.importance.check(trainer, pl_module)

    def end_task(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add what the task that ends depends on, under its last weights."""
        if self.uses_importance:
            self.importance.end_task(trainer, pl_module)
        if self.uses_moments:
            self.moments.end_task(trainer, pl_module)

    def ready_for(
        self,
        rule: MergeRule,
        trainer: Trainer,
        pl_module: LightningModule,
        snapshots: Sequence[Snapshot],
        last: bool,
    ) -> bool:
        """Tell whether a rule can decide; at the ``last`` merge, with what samples there are."""
        probe = self.probe
        if not rule.uses_representations:
            return True
        enough = probe.has_typical_samples or probe.candidate_count >= probe.typical_samples
        # processes wait for each other in a merge: all of them merge, or none
        everywhere = trainer.strategy.reduce_boolean_decision(enough)
        if not everywhere and not last:
            return False  # more candidates come with the next batches
        if probe.has_typical_samples:
            return True
        if not enough:
            rank_zero_warn(
                f"the task had only {probe.candidate_count} samples to choose typical_samples="
                f"{probe.typical_samples} from; all of them are used"
            )
        probe.choose(trainer, pl_module, snapshots)
        return True

    def inputs(
        self,
        rule: MergeRule,
        trainer: Trainer,
        pl_module: LightningModule,
        live: Mapping[str, Tensor],
        snapshots: Sequence[Snapshot],
    ) -> list[MergeInputs]:
        """Measure what a rule uses, and return it for each snapshot."""
        similarity = self._similarity(rule, trainer, pl_module, len(snapshots))
        given: dict[str, Any] = {"blocks": self._run.blocks, "live": live}
        given["lora_pairs"] = self._pairs
        if rule.uses_importance:
            given |= {
                "importance": self.importance.by_name,
                "earlier_tasks": max(1, self.importance.tasks),
            }
        if rule.uses_moments or rule.uses_curvature:
            own = self.moments
            own.measure_unknown(trainer, pl_module, snapshots[-1], stand_in=rule.uses_moments)
            given |= {
                "maps": own.maps,
                "old_moments": own.old,
                "old_output_moments": own.old_outputs,
                "earlier_tasks": max(1, own.tasks),
            }
        if rule.uses_moments:
            new = self.moments.measure(trainer, pl_module)
            given |= {"new_moments": new.inputs, "new_output_moments": new.outputs}
        return [
            MergeInputs(similarity=measured, snapshot=snapshot, **given)
            for measured, snapshot in zip(similarity, snapshots, strict=True)
        ]

    def _similarity(
        self, rule: MergeRule, trainer: Trainer, pl_module: LightningModule, snapshots: int
    ) -> list[dict[str, float]]:
        """Measure each block's similarity to each snapshot, averaged over processes."""
        if not rule.uses_representations:
            return [{} for _ in range(snapshots)]
        states, then = self.probe.measure(trainer, pl_module), self.probe.snapshot_states
        local = torch.tensor(
            [[rule.similarity(old[name], states[name]) for name in states] for old in then],
            device=pl_module.device,
        )
        mean = trainer.strategy.reduce(local, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return [dict(zip(states, row, strict=True)) for row in mean.tolist()]

    def recalibrate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure running statistics of normalisation layers anew, on the last batches."""
        recalibrate(trainer, pl_module, self._run, self.recent.batches)

    def resume(self, pl_module: LightningModule) -> None:
        """After a resume, bring what the checkpoint held to the module's device."""
        self.probe.resume(pl_module)
        self.importance.resume(named_weights(pl_module), pl_module.device)
        self.moments.to_device(pl_module.device)
        self.recent.to_device(pl_module.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all of them, in plain Python and tensors."""
        return {
            "probe": self.probe.state_dict(),
            "importance": self.importance.state_dict(),
            "moments": self.moments.state_dict(),
            "recent": self.recent.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.probe.load_state_dict(state_dict["probe"])
        self.importance.load_state_dict(state_dict["importance"])
        self.moments.load_state_dict(state_dict["moments"])
        self.recent.load_state_dict(state_dict["recent"])
