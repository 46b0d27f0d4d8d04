"""RECALL inside training: merge snapshot and live weights, block by block."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.clock import TaskClock
from recall_lightning.callbacks._trainer.left_out import tell_what_is_left_out
from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.optimizer_state import forget
from recall_lightning.callbacks._trainer.other_callbacks import refuse_weight_averaging
from recall_lightning.callbacks._trainer.schedule import UntoldSchedule
from recall_lightning.callbacks._trainer.stored_state import (
    check_state,
    count_tensors,
    damage_is_said,
)
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.callbacks.task_aware import TaskAwareCallback, task_aware_callbacks
from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.blocks import Block, format_blocks
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.predictions import Predictions
from recall_lightning.measuring.view import ModelView
from recall_lightning.merging.rules import MergeRule
from recall_lightning.merging.rules.base import OF_MAPS
from recall_lightning.merging.structure import Structure
from recall_lightning.metrics.record import FoundBoundary
from recall_lightning.recall.arguments import check_share, described, plain_settings
from recall_lightning.recall.artifacts import LogArtifacts, TaskArtifacts
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.costs import ExpectedMemory, expected_memory
from recall_lightning.recall.earlier_callbacks import tell_of_an_earlier_one
from recall_lightning.recall.expected_seconds import ExpectedSeconds, expected_seconds
from recall_lightning.recall.last_merge import LastMerge, told_within
from recall_lightning.recall.merge_interval import MergeInterval
from recall_lightning.recall.migration import migrated_state
from recall_lightning.recall.optimizer_watch import OptimizerWatch
from recall_lightning.recall.parts import parts_of
from recall_lightning.recall.records import log_merge, log_task, merges_file, write_merges
from recall_lightning.recall.settings import (
    Buffers,
    DriftSettings,
    ImportanceSettings,
    MomentSettings,
    PriorSettings,
    SampleSettings,
    SnapshotSettings,
)
from recall_lightning.recall.state import (
    RecallState,
    check_same_blocks,
    check_same_first_task,
)
from recall_lightning.recall.unmeasured_tasks import tell_of_no_step, tell_of_what_stays
from recall_lightning.recall.unsaved_merges import tell_of_an_early_stop, tell_of_an_unsaved_merge
from recall_lightning.weights.naming import find_weights
from recall_lightning.weights.sharding import gathered, reshard
from recall_lightning.weights.snapshot import Snapshot


class RecallCallback(TaskAwareCallback):
    """Keep what earlier tasks taught a model while it trains on the next.

    When a task starts, the weights are copied: the snapshot. ``every`` so many optimizer steps, and
    at the task's end, snapshot and live weights are merged in place, by a rule for the loop and one
    for the end. By default both go by curvature: by how much the predictions on earlier tasks
    depend on each direction of each linear map's weights. The loop pulls a direction back in
    proportion to that; the end finds the weights that change least what was predicted of earlier
    tasks and what has been learned of this one. No data of earlier tasks is read, only what was
    gathered while it was there: second moments of each map's inputs and of the gradients at its
    outputs, and one importance a parameter.

    ``RecallCallback(every=1.0, rule="rbf", plasticity=None)`` is RECALL as published (EMNLP 2025,
    arXiv 2510.20479): once, after training, a number a block, from how far its hidden
    representations of a few typical samples of the new task have moved.

    What happened is in ``history``, a list with a dict a merge (see
    :class:`~recall_lightning.recall.state.MergeRecord`). ``blocks`` is the table of blocks once the
    first task has started, and ``snapshots`` what is merged, oldest first: the last was taken when
    the current task started.

    A PEFT model's adapter is merged as what it adds to the base, ΔW = scale · BA, not factor by
    factor, and brought back to its rank. The base is frozen, so neither copied nor merged.

    A Trainer takes one: Lightning refuses a second, whose state in a checkpoint would replace the
    first one's. Several rules are one by ``"rbf*importance"``, or a ``MergeRule`` of your own.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RecallCallback(every=0.25)], logger=False)

    Args:
        every: Interval between merges. A float in (0, 1] is a fraction of the task, an int a number
            of optimizer steps. ``"auto"`` is 1.0, the task's end alone, for the default rules and a
            pre-trained model, see ``merge_first_task``; else 0.05, or 10 steps with
            ``boundaries="drift"``. Before a task's end importance counts by the size of the steps
            since the last merge, in full from 48 of the largest learning rate.
        plasticity: What the merge at a task's end leaves of what the task has gained, in (0, 1): of
            the likelihood exp(−loss) of its last batches, by the ``training_step`` without logs.
            As much of the old is kept as that allows, found by trying some seven merges, all in
            ``history``; a warning says where no loss can be measured. None takes the rule's own
            balance, and warns where that costs half of the gain. ``"auto"`` is 0.95 for the default
            rules, ``new_inputs`` 1, and a pre-trained model, see ``merge_first_task``; else None.
        rule: How coefficients are made in the loop: ``"rbf"`` is the paper's, by similarity of
            representations; ``"cka"`` and ``"cosine"`` exchange its similarity; ``"importance"``
            weighs every parameter by its importance to earlier tasks; ``"kfac_importance"`` does so
            in the directions of a Kronecker-factored curvature; ``"subspace"`` finds each linear
            map that keeps its outputs on earlier tasks' inputs; ``"kfac_subspace"`` has them count
            by how much predictions depend on them; ``"rbf*importance"`` multiplies. A
            :class:`~recall_lightning.MergeRule` has numbers of its own, as in ``Uniform(0.2)``, or
            in YAML ``{class_path: Uniform, init_args: {weight: 0.2}}``.
        end_rule: The same for the merge at a task's end. ``"auto"`` takes what belongs to ``rule``:
            ``"kfac_subspace"`` to ``"kfac_importance"``, to every other rule itself; None takes
            ``rule`` in any case. ``"never"`` does not merge at a task's last step, not even where
            ``every`` falls on it.
        samples: The typical samples of rules by similarity.
        importance: Where the importance rules have it from.
        moments: How the subspace and kfac rules measure linear maps.
        prior: What the model knew before its first task, for the subspace and kfac rules: a list of
            texts, or a DataLoader or list of batches like the training ones (a vision model's
            images), of which ``moments.batches`` are read. By default a causal language model
            writes it down itself, as :class:`~recall_lightning.PriorSettings` say, and of any other
            model the first task's inputs stand in. What is given is not kept.
        snapshots: How many tasks' snapshots are kept and merged at once, or all settings of them.
        buffers: What a merge does to running means and variances, such as BatchNorm's: ``"merge"``
            makes them those of both models' activations mixed; ``"keep"`` leaves the live ones,
            which training brings to the merged weights by and by; ``"recalibrate"`` measures them
            under the merged weights, on the last ``moments.batches`` batches.
        optimizer_state: ``"keep"``, or ``"reset"`` to have the optimizer forget its running means
            of merged weights after every merge.
        merge_first_task: Whether to merge in the first task too, as for a model that is
            pre-trained. False for one that starts from random weights: they hold nothing worth
            keeping, and merging towards them harms.
        predictions: What the model predicts, for curvature: ``"classes"``, ``"values"`` (real
            numbers), ``"binary"`` (yes or no, each output of its own), a
            :class:`~recall_lightning.measuring.predictions.Predictions` of your own, a function
            from outputs to a ``torch.distributions`` distribution of targets, or ``"auto"``: what
            the training loss of a task's first step tells, or else a batch's targets.
        view: ``view(pl_module, batch)`` runs the model on a training batch and returns its output;
            only needed where the inputs can't be worked out from ``forward``'s parameters. A
            :class:`~recall_lightning.measuring.view.ModelView` also says where masks, targets and
            logits are.
        blocks: Shell-style patterns of the module names to take as blocks, such as
            ``["model.layers.*"]``; by default they are found.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.
        allow_untested: Whether to run under a Trainer's strategy with which this was never tried,
            or with an optimizer that was found to keep weights of its own, which undo merges.
        seed: Seed of whatever is drawn to measure: typical samples, sequences, labels.
        keep_live: Whether the live weights of before a task's last merge, and what was measured for
            it, stay until the next task, in memory and in checkpoints, for :meth:`retune` and the
            command of that name. It takes one more copy of the trainable weights, and two of the
            moments; ``"auto"`` does so where an adapter is trained and ``plasticity`` is set.
        boundaries: ``"known"``, or ``"drift"`` for a stream whose tasks nobody announces: one ends
            where the training loss rises for good, whatever a datamodule says. ``every`` then is
            in steps. It takes the extra ``drift``, the package ``river``, and one more copy of the
            trainable weights, in checkpoints too; :class:`~recall_lightning.DriftSettings` say how.
        log_artifacts: What goes to Weights & Biases as artifacts: ``"weights"``, the trainable ones
            after each task, merged; ``"snapshots"``, the files of snapshots, which
            ``SnapshotSettings(to="file")`` writes; True for both, as far as there are files. Their
            metadata say what the last merge was; of a task that is rolled back none are logged.
        refit_head: Whether a task's last merge also fits a classifier's last layer anew: to what
            was predicted of inputs as earlier tasks had them (a mean a class and a covariance are
            kept of each), and is of the last batches. ``"auto"``: with a ``plasticity``, to new
            classes alone where ``merge_first_task=False``; else where the merge costs those half.

    Raises:
        MisconfigurationException: For an argument out of its range or without an effect, a strategy
            that is not supported, a model without blocks, or inputs that can't be worked out.
    """

    state_form: ClassVar[type] = RecallState

    def __init__(
        self,
        every: int | float | Literal["auto"] = "auto",
        plasticity: float | Literal["auto"] | None = "auto",
        rule: MergeRule | str = "kfac_importance",
        end_rule: MergeRule | str | None = "auto",
        samples: SampleSettings | None = None,
        importance: ImportanceSettings | None = None,
        moments: MomentSettings | None = None,
        prior: PriorSettings | list[str] | Iterable[Any] | None = None,
        snapshots: SnapshotSettings | int | Literal["all"] | None = None,
        buffers: Buffers = "merge",
        optimizer_state: Literal["keep", "reset"] = "keep",
        merge_first_task: bool = True,
        predictions: str | Predictions | Callable[[Tensor], Distribution] = "auto",
        view: ModelView | ProbeForward | None = None,
        blocks: list[str] | None = None,
        task_epochs: int | list[int] | None = None,
        allow_untested: bool = False,
        seed: int = 0,
        keep_live: bool | Literal["auto"] = "auto",
        boundaries: Literal["known", "drift"] | DriftSettings = "known",
        log_artifacts: LogArtifacts = False,
        refit_head: bool | Literal["auto"] = "auto",
    ) -> None:
        given = dict(locals())
        super().__init__(task_epochs)
        with _misconfiguration():
            self._parts = parts = parts_of(given)
        self.rule, self.end_rule = parts.rule, parts.end_rule
        self._kept, self._statistics, self._trained = parts.kept, parts.statistics, parts.trained
        self._merge, self._estimates, self._drift = parts.merge, parts.estimates, parts.drift
        if self._drift is not None:
            self.clock = TaskClock(UntoldSchedule())
        self._artifacts = TaskArtifacts(log_artifacts)
        given["prior"] = described(prior)
        self._settings = plain_settings(given, RecallCallback.__init__)
        self.every, self.plasticity = parts.every, parts.plasticity
        self.optimizer_state, self.allow_untested = optimizer_state, allow_untested
        self.merge_first_task = merge_first_task
        self.block_patterns = [blocks] if isinstance(blocks, str) else blocks
        self.history: list[dict[str, Any]] = []
        self._structure = Structure()
        self._first_batch_is_checked = False
        self._first_visit = 0  # of those that took a step
        self._is_merge_saved = True  # in a checkpoint
        self._watch = OptimizerWatch(forgets=optimizer_state == "reset")
        self._resumed: list[str] | None = None  # the blocks of a checkpoint that was just loaded
        self._last_merge = LastMerge(self.end_rule)
        self._beside: list[TaskAwareCallback] = []  # in the Trainer of the last fit
        self._merges_file: Path | None = None
        self._sums: list[Any] | None = None  # of before the last task's end, until the next starts

    @property
    def blocks(self) -> list[Block]:
        """The table of blocks, shallow to deep; empty before the first task."""
        return list(self._structure.blocks)

    @property
    def changes(self) -> list[FoundBoundary]:
        """The changes that were noticed with ``boundaries="drift"``."""
        return [] if self._drift is None else list(self._drift.changes)

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots that are merged, oldest first."""
        return self._kept.snapshots

    def retune(self, pl_module: LightningModule, plasticity: float) -> None:
        """Make the last task's last merge again, with another share of the task's gain left.

        It takes seconds and no data, however often, until the next task starts: always from the
        weights of before the merge. ``history`` and ForgettingMonitor's last row tell of it.

        Args:
            pl_module: The model, whose weights are written.
            plasticity: The share, in (0, 1).

        Raises:
            MisconfigurationException: If what the merge was made from is not known (``keep_live``),
                or the model is sharded: there use ``recall-lightning retune`` on a checkpoint.
        """
        with _misconfiguration():
            record = self.history[-1] if self.history else {}
            given = pl_module, self.snapshots, record, check_share(plasticity), self.task_ended
            again = self._last_merge.again_(*given)
        if again == record:  # it is that merge
            return
        self.history[-1] = again
        write_merges(self._merges_file, self.history, names_tasks=self._drift is not None)
        for callback in self._beside:
            callback.on_retuned(again["step"])

    def expected_memory(self, pl_module: nn.Module, batch: Any) -> ExpectedMemory:
        """Tell before a run what it will take to keep what the model knows.

        The model is run on the batch, forward and backward, and left as it was.

        Args:
            pl_module: The model as it will be trained, LightningModule or not, on any device.
            batch: A training batch on that device, of the size of all others.

        Returns:
            Bytes in each process that holds whole weights. Of ``snapshots="all"`` one is counted:
            each one more takes as much again. What ``keep_live`` keeps from a task's end to the
            next one's start is not counted.

        Raises:
            MisconfigurationException: If the model cannot be run or has no blocks.

        Example:
            >>> import torch
            >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> batch = torch.randn(16, 8), torch.randint(2, (16,))
            >>> memory = RecallCallback(merge_first_task=False).expected_memory(net, batch)
            >>> memory.training["snapshots"], memory.training["last batches"]
            (184, 10240)
        """
        with _misconfiguration():
            structure = self._structure_of(pl_module)
            return expected_memory(pl_module, batch, structure, self._parts)

    def expected_seconds(self, pl_module: nn.Module, batch: Any, steps: int) -> ExpectedSeconds:
        """Tell before a run how long that will take beside training, as measured here and now.

        Args:
            pl_module: As for :meth:`expected_memory`; it is run and left as it was.
            batch: Likewise.
            steps: Of a task, each of one batch.

        Raises:
            MisconfigurationException: As there; or if the model cannot be trained so.
        """
        with _misconfiguration():
            given = (self._structure_of(pl_module), self._parts, self.merge_first_task)
            return expected_seconds(pl_module, batch, steps, *given, self.should_merge)

    def should_merge(self, step_in_task: int, task_steps: int | None) -> bool:
        """Decide whether to merge after an optimizer step; override it for a policy of your own.

        Args:
            step_in_task: Optimizer steps done in this task, from 1.
            task_steps: How many the task takes; None if its dataloader has no length.

        Returns:
            Whether to merge now. The default merges every ``every`` steps or fraction, and at the
            last step unless ``end_rule`` is ``"never"``.

        Example:
            >>> [s for s in range(1, 11) if RecallCallback(every=0.25).should_merge(s, 10)]
            [3, 5, 8, 10]
        """
        if step_in_task == task_steps:
            return self.end_rule is not None
        return self._interval.is_due(step_in_task, task_steps)

    # The task hooks.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work, and import what takes a second before training starts."""
        super().setup(trainer, pl_module, stage)
        if "similarity" in self._needs:
            import sklearn.cluster  # noqa: F401
        check_strategy(trainer, self, sharded=True, allow_untested=self.allow_untested)
        refuse_weight_averaging(trainer, "RecallCallback merges the weights that are trained")
        if stage == "fit":
            self._beside = [each for each in task_aware_callbacks(trainer) if each is not self]
            self._kept.storage.check(trainer)
            self._artifacts.check(trainer, in_files=self._kept.storage.to == "file")
        counts = isinstance(self.every, Integral) or (self._drift and self.every == 1)
        if stage == "fit" and trainer.max_epochs == trainer.max_steps == -1 and not counts:
            self._interval.refuse_unknown_length()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring what the checkpoint held to the device."""
        super().on_train_start(trainer, pl_module)
        resumed, self._resumed = self._resumed, None
        self._first_batch_is_checked = False
        if not self.allow_untested:
            self._watch.start_fit(trainer.optimizers, self)
        tell_what_is_left_out(self, pl_module)
        if self.task is not None:
            with _misconfiguration():
                self._find_structure(pl_module)
                if resumed is not None and not self.task_ended:
                    check_same_blocks([block.name for block in self.blocks], resumed)
                    if self.visit == 0:
                        check_same_first_task(self.merge_first_task, self._kept.visits)
                    self._statistics.check_fits(self._context(trainer, pl_module))
                self._statistics.resume(self._context(trainer, pl_module))
                if self._drift is not None:
                    self._drift.start_fit(self._context(trainer, pl_module), resumed is not None)
        merges = self._merges_this_task
        with _misconfiguration():
            pairs = self._structure.lora_pairs
            left = self._kept.resume(trainer, pl_module, not self.task_ended, pairs)
            if resumed is not None and not self.task_ended:
                for snapshot in self.snapshots:
                    snapshot.check_shapes(find_weights(pl_module, snapshot))
        self._statistics.leave_snapshots(left)
        if merges and not self._merges_this_task and not self.task_ended:
            self.restart_task()

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Take the snapshot, and let the task's statistics start."""
        assert self.visit is not None
        self._trained.start_task()
        self._last_merge.state = self._sums = self._estimates.last = None
        self._first_batch_is_checked = False
        if self.visit == 0:
            self._first_visit = 0
            tell_of_an_earlier_one(self, pl_module, self.merge_first_task)
        self._kept.make_room(self.visit)
        self.history = [record for record in self.history if record["visit"] < self.visit]
        if self.task_steps is None and self._interval.needs_length:
            self._interval.refuse_unknown_length()
        first_table = not self._structure.blocks
        with _misconfiguration(), self._trained.all_trainable(pl_module):
            self._find_structure(pl_module)
            if first_table:
                notes = self._statistics.notes(self._structure, pl_module)
                rank_zero_info(format_blocks(self._structure.blocks, notes))
            if self.merge_first_task or self.visit > self._first_visit:
                self._kept.take(trainer, pl_module, self.visit, self._structure.lora_pairs)
                self._artifacts.start_task(trainer, self.snapshots[-1], self._known(trainer))
            self._statistics.start_task(self._context(trainer, pl_module))
            if self._drift is not None:
                self._drift.start_task(self._context(trainer, pl_module))
                self._watch.observe_merge()  # of the steps since the change, which come on top

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the batch be seen by what rules decide from; a task's first is tried out."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._trained.observe_batch(trainer.optimizers)
        with _misconfiguration():
            context = self._context(trainer, pl_module)
            if not self._first_batch_is_checked:
                tried = detached(batch)  # a forward may change its batch
                self._merge.check_batch(context, tried)
                unlike = self._statistics.check_batch(context, tried)
                self._structure = self._structure.without_maps(unlike)
                context = self._context(trainer, pl_module)
                self._first_batch_is_checked = True
            self._statistics.observe_batch(context, batch)
        if self._drift is not None:
            self._drift.start_batch()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Let the loss be seen."""
        self._statistics.observe_loss(self._context(trainer, pl_module), loss)
        if self._drift is not None:
            self._drift.observe_loss(loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the gradients be seen."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self._trained.observe(optimizer)
        self._statistics.observe_gradients(self._context(trainer, pl_module), optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task; say so where the last validation and checkpoint came before its merge."""
        merges = len(self.history)
        super().on_train_end(trainer, pl_module)
        self._log_ended_task(trainer, pl_module, wait=False)  # one that an early stop has ended
        self._statistics.release(self._context(trainer, pl_module))
        if self._drift is not None:
            self._drift.release()
        self._kept.storage.remove_unused(trainer, self.snapshots)
        self._merges_file = merges_file(trainer)
        write_merges(self._merges_file, self.history, names_tasks=self._drift is not None)
        if self.clock.stopped_early and len(self.history) > merges:
            tell_of_an_early_stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where every checkpoint is from before the last merge."""
        super().on_fit_end(trainer, pl_module)
        if self.task_ended and not (self._is_merge_saved or self.clock.stopped_early):  # is said
            tell_of_an_unsaved_merge(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the weights of a task that has ended, and been validated, as an artifact."""
        self._log_ended_task(trainer, pl_module, wait=not trainer.enable_validation)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the epoch's task, and see which weights are left of it."""
        self._artifacts.log_waiting(trainer, pl_module, self.history)
        super().on_train_epoch_start(trainer, pl_module)
        if self._merges_this_task:
            self._trained.observe_names(pl_module, self.snapshots[-1])

    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Merge, if it is time."""
        due = not self.task_ended and self.should_merge(self.step_in_task, self.task_steps)
        with _misconfiguration():
            if not self.allow_untested:
                merge_follows = due or self.task_ended
                self._watch.observe_step(trainer.optimizers, pl_module, self, merge_follows)
            self._statistics.observe_step(self._context(trainer, pl_module))
            if self._drift is not None and not self.task_ended:
                due = not self._drift.observe_step(self._context(trainer, pl_module)) and due
        if due and self.clock.has_learned and self._merge_by(self.rule, trainer, pl_module):
            self._reset_optimizers(trainer, pl_module)
        elif self._drift is None:
            with _misconfiguration():
                self._estimates.observe_step(self._context(trainer, pl_module))

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Merge at the last step, learn what the task depends on, and log its coefficients."""
        if not self.clock.has_learned:
            if self.visit == self._first_visit:
                self._first_visit += 1
            tell_of_no_step(self.task_name(trainer, task))
            return
        rule, due = self.end_rule, self.should_merge(self.step_in_task, self.step_in_task)
        merged = due and rule is not None and self._merge_by(rule, trainer, pl_module)
        self._last_merge.keep(self._merge.take_last() if merged else None)
        if not (merged and "divergence" in self.history[-1]) and self._drift is None:
            with _misconfiguration():
                self._estimates.estimate(self._context(trainer, pl_module))
        if any(each.may_roll_back for each in task_aware_callbacks(trainer)):
            self._sums = self._statistics.sums()
        with _misconfiguration():
            self._merge.end_task(self._context(trainer, pl_module))
        if merged:
            self._reset_optimizers(trainer, pl_module)  # importance has been read from them
        records = [record for record in self.history if record["visit"] == self.visit]
        log_task(trainer, self.visit_name(trainer), records, with_front=merged)
        if self._drift is not None:  # whose tasks end within an epoch
            self._log_ended_task(trainer, pl_module, wait=False)

    @property
    def can_estimate(self) -> bool:
        """Whether what is predicted is compared with the snapshot's, at known ends."""
        return "curvature" in self._needs and self._drift is None

    @property
    def can_roll_back(self) -> bool:
        """Whether its task ends where others see it end."""
        return self._drift is None

    def merge_within(
        self, trainer: Trainer, pl_module: LightningModule, limits: Mapping[str, float]
    ) -> str | None:
        """Make the task's last merge again so that the estimates keep limits, if one does.

        That takes what the merge was made from, see ``keep_live``.
        """
        record = self.history[-1] if self.history else {}
        again = self._last_merge.within_(pl_module, self.snapshots, record, limits)
        if again is None:
            return None
        self.history[-1] = again
        self._is_merge_saved = False
        return told_within(record, again)

    def on_rollback(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was measured of the task that has ended."""
        if self._sums is not None:
            self._statistics.put_back(self._sums)
        else:
            tell_of_what_stays()
        self._statistics.leave_snapshots(self._kept.leave_out(self.visit))
        self._last_merge.state = self._sums = self._estimates.last = None
        self._artifacts.leave_out(self.visit)
        if self.visit == self._first_visit:
            self._first_visit += 1
        for record in self.history:
            if record["visit"] == self.visit:
                record["rolled_back"] = True

    def on_task_left(
        self, trainer: Trainer, pl_module: LightningModule, task: int, batch: Any
    ) -> None:
        """End the task on the last batches that the checkpoint holds."""
        with _misconfiguration():
            self._statistics.complete(self._context(trainer, pl_module), batch)
        super().on_task_left(trainer, pl_module, task, batch)

    def progress_bar_items(self, trainer: Trainer) -> dict[str, int | str]:
        """Show the task's name and the number of merges so far."""
        return {**super().progress_bar_items(trainer), "merges": str(len(self.history))}

    @property
    def estimates(self) -> dict[str, float]:
        """What the last merge, or what was measured since, tells by name, in nats a prediction."""
        return {} if self._drift is not None else self._estimates.latest(self.history, self.visit)

    @property
    def marked_steps(self) -> dict[str, list[int]]:
        """The global steps of all merges."""
        return {"merge": [record["step"] for record in self.history]}

    @property
    def found_boundaries(self) -> list[FoundBoundary] | None:
        """The changes that were noticed, where the callback looks for them."""
        return None if self._drift is None else self.changes

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the files of snapshots that the checkpoint refers to."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._kept.storage.checkpoint_saved(self.snapshots)
        self._is_merge_saved = True

    def state_dict(self) -> dict[str, Any]:
        """Return snapshots, what rules decide from, and the history."""
        state = {
            **super().state_dict(),
            "first_visit": self._first_visit,
            "history": self.history,
            "blocks": [block.name for block in self._structure.blocks],
            "settings": self._settings,
            "snapshots": self._kept.state_dict(),
            "statistics": self._statistics.state_dict(),
            "last_merge": self._last_merge.state,
            "drift": None if self._drift is None else self._drift.state_dict(),
            "estimate": self._estimates.last,
        }
        state["tensors"] = count_tensors(state)
        # Lightning would save one process's shards, and load them without a word
        return gathered(state, keep=rank_zero_only.rank == 0)  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            MisconfigurationException: If it is damaged, or of no use to the rules of now.
        """
        check_state(self, state_dict)
        state_dict, said = migrated_state(state_dict)
        if said:
            rank_zero_warn(
                "the checkpoint's RecallCallback is of an earlier version, and is read: "
                f"{', '.join(said)}"
            )
        super().load_state_dict(state_dict)
        self._first_visit = state_dict.get("first_visit", 0)  # older checkpoints have none
        # where there is no visit in it, no task was visited twice
        self.history = [{"visit": record["task"], **record} for record in state_dict["history"]]
        self._resumed = list(state_dict.get("blocks", []))  # older checkpoints have none
        ended = 0 if self.visit is None else self.visit + self.task_ended
        with damage_is_said(type(self).__name__):
            self._kept.load_state_dict(state_dict["snapshots"])
            self._statistics.check_forms(state_dict["statistics"])
        with _misconfiguration():
            self._statistics.load_state_dict(state_dict["statistics"], ended)
        self._last_merge.state = state_dict.get("last_merge")  # older checkpoints have neither
        self._estimates.last = state_dict.get("estimate")
        if self._drift is not None and state_dict.get("drift") is not None:
            self._drift.load_state_dict(state_dict["drift"])
        if state_dict["task_ended"]:  # earlier versions kept its samples until the next one
            self._statistics.forget_samples()

    # How the hooks do it.

    @property
    def _interval(self) -> MergeInterval:
        return MergeInterval(self.every)

    @property
    def _merges_this_task(self) -> bool:
        return self.visit in self._kept.visits

    @property
    def _needs(self) -> frozenset[str]:
        return self.rule.needs | (frozenset() if self.end_rule is None else self.end_rule.needs)

    def _context(self, trainer: Trainer, pl_module: LightningModule) -> TaskContext:
        snapshots = self.snapshots if self._merges_this_task else []
        return TaskContext(trainer, pl_module, self.clock, self._structure, snapshots)

    def _known(self, trainer: Trainer) -> dict[str, Any]:
        """Return what is known of the task, for who finds its weights."""
        assert self.task is not None
        name, step = self.visit_name(trainer), self.steps_trained(trainer)
        return {"task": self.task, "name": name, "visit": self.visit, "step": step}

    def _log_ended_task(self, trainer: Trainer, module: LightningModule, wait: bool) -> None:
        if self.task_ended:
            self._artifacts.end_task(trainer, module, self.history, self._known(trainer), wait)

    def _find_structure(self, pl_module: LightningModule) -> None:
        reshard(pl_module)
        self._structure = self._structure_of(pl_module)

    def _structure_of(self, pl_module: nn.Module) -> Structure:
        return Structure.of(pl_module, self.block_patterns, bool(self._needs & OF_MAPS))

    def _reset_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.optimizer_state == "reset":
            forget(trainer.optimizers, find_weights(pl_module, self.snapshots[-1]).values())

    def _merge_by(self, rule: MergeRule, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Merge, if there is something to merge and the rule can decide; tell whether."""
        if not self._merges_this_task:
            return False
        with _misconfiguration():
            context = self._context(trainer, pl_module)
            merged = self._merge.apply(context, rule, last=self.task_ended)
        if merged is None:
            return False
        self._watch.observe_merge()
        self._is_merge_saved = False
        step = self.steps_trained(trainer)
        record = {"task": self.task, "visit": self.visit, "step": step, **merged}
        self.history.append(record)
        log_merge(trainer, record)
        return True


_misconfiguration = partial(misconfiguration, "RecallCallback")
