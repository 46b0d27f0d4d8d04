"""RECALL inside training: merge snapshot and live weights, block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.loggers import log_figure, log_scalars
from recall_lightning.callbacks._trainer.optimizer_state import forget
from recall_lightning.callbacks._trainer.other_callbacks import refuse_weight_averaging
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.callbacks.task_aware import TaskAwareCallback
from recall_lightning.checks import check_choice
from recall_lightning.measuring.blocks import Block, find_blocks, format_blocks
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.merging.block_settings import Setting
from recall_lightning.merging.lora.pairs import LoraPair, find_lora_pairs
from recall_lightning.merging.rules import MergeRule, RuleOptions
from recall_lightning.recall.merge import Buffers, SnapshotMerge
from recall_lightning.recall.model_run import ProbeRun
from recall_lightning.recall.records import record_scalars, records_figure
from recall_lightning.recall.rule_statistics import RuleStatistics
from recall_lightning.recall.settings import (
    check_decides_about,
    check_numbers,
    check_strength,
    device_of,
    plain_settings,
    rule_of,
    warn_of_unused,
)
from recall_lightning.recall.snapshot_storage import SnapshotStorage
from recall_lightning.recall.snapshots import KeptSnapshots
from recall_lightning.recall.statistics.importance import Importance
from recall_lightning.recall.statistics.moments import TaskMoments
from recall_lightning.recall.statistics.recent_batches import RecentBatches
from recall_lightning.recall.statistics.samples import Probe
from recall_lightning.weights.naming import named_weights
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

    ``RecallCallback(every=1.0, rule="rbf", end_rule="rbf")`` is RECALL as published (EMNLP 2025,
    arXiv 2510.20479): once, after training, a number a block, from how far its hidden
    representations of a few typical samples of the new task have moved.

    Note:
        Merging again and again towards one snapshot acts as a spring: with the snapshot's weight w
        the drift settles at (1 − w) / w times what an interval adds. More frequent merges and a
        larger weight keep more of the old and learn less of the new. The merge at the task's end
        matters most; without it most of the benefit is lost.

    What happened is in these attributes. ``history`` is a list with a dict a merge: ``task``
    (counted from 0), ``step`` (optimizer steps so far, over all fits), ``similarity``,
    ``coefficient`` and ``drift`` (block name to float; a coefficient is the mean over the block's
    weights, drift is ‖θ − θ_snapshot‖ / ‖θ_snapshot‖ before the merge), ``probe_seconds`` and
    ``merge_seconds``; with the subspace rule also ``condition`` (block name to the worst condition
    number of the systems it solved); with LoRA also
    ``discarded_energy`` (block name to the fraction of ‖ΔW‖² that merged factors lost on their way
    back to their rank), with several snapshots ``earlier`` (a list of dicts with the ``task``,
    ``similarity`` and ``coefficient`` of each but the newest, which the other entries are about).
    ``blocks`` is the table of blocks once the first task has started, a list of
    :class:`~recall_lightning.measuring.blocks.Block`, and ``snapshots`` what is merged,
    oldest first: the last was taken when the current task started.

    A PEFT model's adapter is merged as what it adds to the base, ΔW = scale · BA, not factor by
    factor, and brought back to its rank. The base is frozen, so neither copied nor merged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RecallCallback(every=0.25)], logger=False)

    Args:
        every: Interval between merges. A float in (0, 1] is a fraction of the task, an int a number
            of optimizer steps.
        at_task_end: Whether the task's last step merges; if not, it never does, not even where
            ``every`` falls on it.
        rule: How coefficients are made in the loop: ``"rbf"`` is the paper's, by similarity of
            representations; ``"cka"`` and ``"cosine"`` exchange its similarity; ``"uniform"`` is 1
            for every block; ``"importance"`` weighs every parameter by its importance to earlier
            tasks; ``"kfac_importance"`` does so in the directions of a Kronecker-factored
            curvature; ``"subspace"`` finds each linear map that keeps its outputs on earlier tasks'
            inputs; ``"kfac_subspace"`` has them count by how much predictions depend on them;
            ``"rbf*importance"`` multiplies; or a :class:`~recall_lightning.MergeRule`.
        end_rule: The same for the merge at a task's end. None takes ``rule`` and ``strength``
            there too.
        strength: What multiplies the coefficients of ``rule``, in [0, 1]: a number, a list that is
            interpolated from the first block to the last, or a dict of name patterns to either.
        temperature: τ of the softmax over similarities, > 0. Smaller leaves drifted blocks more to
            the live model: less forgetting prevented, more learned.
        sigma: Width of the RBF kernel in units of the hidden states; ``"median"`` takes it from
            the snapshot's own states, block by block.
        importance_scale: λ > 0 of the importance rules, w = λF / (1 + λF). Larger keeps more.
        importance_source: ``"optimizer"`` reads importance from Adam's state at a task's end,
            ``"gradients"`` averages squared gradients over its last ``importance_steps`` steps,
            ``"auto"`` does so where the optimizer has no such state.
        importance_steps: How many optimizer steps that is.
        new_inputs: λ > 0 of the subspace rules: what the current task's inputs count against those
            of earlier tasks. Larger keeps less.
        moment_batches: On how many of a task's last batches the moments of linear maps are
            measured, per process.
        moment_width: Maps of more inputs than this have their second moments kept as a matrix of
            rank ``moment_rank`` plus a diagonal; of maps wider than this on either side curvature
            is not kept, and the kfac rules merge them as ``"importance"`` and ``"subspace"`` do.
        moment_rank: That rank.
        moment_source: ``"task"``, or ``"generated"`` for sequences that a causal language model
            writes itself at a task's end, where not even moments of the data may be kept after it.
        buffers: What a merge does to running means and variances, such as BatchNorm's: ``"merge"``
            merges them as weights, with their block's coefficient; ``"keep"`` leaves the live ones,
            which training brings to the merged weights by and by; ``"recalibrate"`` measures them
            under the merged weights, on the last ``moment_batches`` batches.
        optimizer_state: ``"keep"``, or ``"reset"`` to have the optimizer forget its running means
            of merged weights after every merge.
        typical_samples: How many typical samples to measure on, per process. More make the
            measure steadier and a probe slower.
        pool_size: How many candidates they are chosen from.
        sampling: How: ``"k-means"`` over hidden states, or ``"random"``.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.
        merge_first_task: Whether to merge in the first task too. False for a model that starts from
            random weights: they hold nothing worth keeping, and merging towards them harms.
        probe_forward: ``probe_forward(pl_module, batch)`` runs the model on a training batch and
            returns its output; only needed where the inputs can't be worked out from ``forward``'s
            parameters.
        blocks: Shell-style patterns of the module names to take as blocks, such as
            ``["model.layers.*"]``; by default they are found.
        snapshots: How many tasks' snapshots to keep and merge at once, the softmax running over all
            of them and the live model; ``"all"`` keeps every one. Each costs a copy of the
            trainable weights.
        snapshot_device: Where snapshots live, for example ``"cpu"``; by default beside the
            weights.
        snapshot_to: ``"checkpoint"`` keeps snapshots in memory and puts them into every checkpoint;
            ``"file"`` writes each once, into a folder ``snapshots`` beside the checkpoints, and
            reads it through a memory map when it merges. Move that folder along with checkpoints.
        on_missing_snapshot: Where that file is missing, truncated or altered at a resume:
            ``"error"``, or ``"restart_task"`` to let the task start anew, with a snapshot of the
            weights as they are then.
        on_failed_write: Where the file cannot be written, for example on a full disk:
            ``"keep_in_memory"`` warns and goes on as ``"checkpoint"`` does, ``"error"`` stops.
        allow_untested: Whether to run under a Trainer's strategy with which this was never tried.
        seed: Seed of the choice of typical samples.

    Raises:
        MisconfigurationException: For an argument out of its range, a strategy that is not
            supported, a model without blocks, or inputs that can't be worked out.
    """

    def __init__(
        self,
        every: int | float = 0.05,
        at_task_end: bool = True,
        rule: str | MergeRule = "kfac_importance",
        end_rule: str | MergeRule | None = "kfac_subspace",
        strength: Setting = 1.0,
        temperature: float = 1.0,
        sigma: float | Literal["median"] = "median",
        importance_scale: float = 0.1,
        importance_source: Literal["auto", "optimizer", "gradients"] = "auto",
        importance_steps: int = 50,
        new_inputs: float = 1.0,
        moment_batches: int = 32,
        moment_width: int = 1024,
        moment_rank: int = 128,
        moment_source: Literal["task", "generated"] = "task",
        buffers: Buffers = "merge",
        optimizer_state: Literal["keep", "reset"] = "keep",
        typical_samples: int = 32,
        pool_size: int = 256,
        sampling: Literal["k-means", "random"] = "k-means",
        task_epochs: int | list[int] | None = None,
        merge_first_task: bool = True,
        probe_forward: ProbeForward | None = None,
        blocks: list[str] | None = None,
        snapshots: int | Literal["all"] = 1,
        snapshot_device: str | None = None,
        snapshot_to: Literal["checkpoint", "file"] = "checkpoint",
        on_missing_snapshot: Literal["error", "restart_task"] = "error",
        on_failed_write: Literal["keep_in_memory", "error"] = "keep_in_memory",
        allow_untested: bool = False,
        seed: int = 0,
    ) -> None:
        given = dict(locals())
        super().__init__(task_epochs)
        options = RuleOptions(temperature, sigma, importance_scale, new_inputs)
        with _misconfiguration():
            check_numbers(every, typical_samples, pool_size, snapshots)
            check_choice("sampling", sampling, "k-means", "random")
            check_choice("optimizer_state", optimizer_state, "keep", "reset")
            check_choice("buffers", buffers, *get_args(Buffers))
            check_strength(strength, rule)
            self.snapshot_device = None if snapshot_device is None else device_of(snapshot_device)
            self.rule = rule_of("rule", rule, options)
            self.end_rule = None if end_rule is None else rule_of("end_rule", end_rule, options)
            for own in self._rules:
                check_decides_about(snapshots, own)
            storage = SnapshotStorage(snapshot_to, on_failed_write, self.snapshot_device)
            self._kept = KeptSnapshots(snapshots, storage, on_missing_snapshot)
        warn_of_unused(given, RecallCallback.__init__)
        self._settings = plain_settings(given, RecallCallback.__init__)
        self.every = every
        self.at_task_end = at_task_end
        self.strength = strength
        self.optimizer_state = optimizer_state
        self.allow_untested = allow_untested
        self.merge_first_task = merge_first_task
        self.block_patterns = [blocks] if isinstance(blocks, str) else blocks
        self.blocks: list[Block] = []
        self.history: list[dict[str, Any]] = []
        self._lora_pairs: list[LoraPair] = []
        run = ProbeRun(probe_forward)
        with _misconfiguration():
            recent = RecentBatches(moment_batches)
            self._statistics = RuleStatistics(
                self._rules,
                run,
                Probe(typical_samples, pool_size, run, seed, sampling),
                Importance(importance_source, importance_steps),
                TaskMoments(
                    recent,
                    moment_width,
                    moment_rank,
                    moment_source,
                    run,
                    seed,
                    curvature=any(rule.uses_curvature for rule in self._rules),
                ),
                recent,
                recalibrates=buffers == "recalibrate",
            )
        self._snapshot_merge = SnapshotMerge(self._kept, self._statistics, buffers)

    @property
    def _rules(self) -> list[MergeRule]:
        return [self.rule] if self.end_rule is None else [self.rule, self.end_rule]

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots that are merged, oldest first."""
        return self._kept.snapshots

    def should_merge(self, step_in_task: int, task_steps: int | None) -> bool:
        """Decide whether to merge after an optimizer step; override it for a policy of your own.

        Args:
            step_in_task: Optimizer steps done in this task, from 1.
            task_steps: How many the task takes; None if its dataloader has no length.

        Returns:
            Whether to merge now. The default merges every ``every`` steps or fraction, and at the
            last step if ``at_task_end``.

        Example:
            >>> [s for s in range(1, 11) if RecallCallback(every=0.25).should_merge(s, 10)]
            [3, 5, 8, 10]
        """
        if step_in_task == task_steps:
            return self.at_task_end
        if isinstance(self.every, Integral):
            return step_in_task % int(self.every) == 0
        assert task_steps is not None  # checked when the task started
        interval = self.every * task_steps
        # tolerance: 0.1 · 3 is a little more than 0.3
        return int(step_in_task / interval + 1e-9) > int((step_in_task - 1) / interval + 1e-9)

    # The task hooks.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't work, and import what takes a second before training starts."""
        super().setup(trainer, pl_module, stage)
        if self._statistics.uses_representations:
            import sklearn.cluster  # noqa: F401
        check_strategy(trainer, self, sharded=True, allow_untested=self.allow_untested)
        refuse_weight_averaging(trainer, self)
        if stage == "fit":
            self._kept.storage.check(trainer)
        endless = trainer.max_epochs == -1 and trainer.max_steps == -1
        if stage == "fit" and endless and not isinstance(self.every, Integral):
            self._refuse_unknown_length()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring what the checkpoint held to the device."""
        super().on_train_start(trainer, pl_module)
        if self.task is not None:
            with _misconfiguration():
                self._know_model(pl_module)
            self._statistics.resume(pl_module)
        merges = self._merges_this_task
        with _misconfiguration():
            left = self._kept.resume(trainer, pl_module, needed=not self.task_ended)
        self._statistics.probe.leave_snapshots(left)
        if merges and not self._merges_this_task and not self.task_ended:
            self._in_task = False  # the task starts anew

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Take the snapshot and gather candidates for typical samples."""
        self._kept.make_room(task)
        self.history = [record for record in self.history if record["task"] < task]
        if self.task_steps is None and not isinstance(self.every, Integral):
            self._refuse_unknown_length()
        first_table = not self.blocks
        with _misconfiguration():
            others = self._know_model(pl_module)
            if first_table:
                rank_zero_info(format_blocks(self.blocks, others))
            if task > 0 or self.merge_first_task:
                self._kept.take(trainer, pl_module, task, self._lora_pairs)
            snapshots = self.snapshots if self._merges_this_task else []
            self._statistics.start_task(trainer, pl_module, task, snapshots)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the batch be seen by what rules decide from."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        snapshots = self.snapshots if self._merges_this_task else []
        with _misconfiguration():
            self._statistics.observe_batch(trainer, pl_module, snapshots, batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the gradients be seen."""
        self._statistics.observe_gradients(self, optimizer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the task; say so where the last validation and checkpoint came before its merge."""
        merges, ended = len(self.history), self.task_ended
        super().on_train_end(trainer, pl_module)
        self._kept.storage.remove_unused(trainer, self.snapshots)
        if not ended and len(self.history) > merges:
            rank_zero_warn(
                "the fit stopped early, so the merge at its task's end came after the last "
                "validation and checkpoint: validate and save the model once more"
            )

    def on_task_step(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Merge, if it is time."""
        if self.step_in_task == 1:
            with _misconfiguration():
                self._statistics.check_optimizers(trainer, pl_module)
        merges = len(self.history)
        if not self.task_ended and self.should_merge(self.step_in_task, self.task_steps):
            self._merge_if_ready(trainer, pl_module)
        if len(self.history) > merges:
            self._reset_optimizers(trainer, pl_module)

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Merge at the last step, learn what the task depends on, and log its coefficients."""
        merges = len(self.history)
        if self.should_merge(self.step_in_task, self.step_in_task):
            self._merge_if_ready(trainer, pl_module)
        with _misconfiguration():
            self._statistics.end_task(trainer, pl_module)
        if len(self.history) > merges:
            self._reset_optimizers(trainer, pl_module)  # importance has been read from them
        records = [record for record in self.history if record["task"] == task]
        if records:
            key = f"recall/coefficients/{self.task_name(trainer, task)}"
            log_figure(trainer, key, partial(records_figure, records))

    def progress_bar_items(self, trainer: Trainer) -> dict[str, int | str]:
        """Show the task's name and the number of merges so far."""
        return {**super().progress_bar_items(trainer), "merges": str(len(self.history))}

    @property
    def marked_steps(self) -> dict[str, list[int]]:
        """The global steps of all merges."""
        return {"merge": [record["step"] for record in self.history]}

    def state_dict(self) -> dict[str, Any]:
        """Return snapshots, what rules decide from, and the history."""
        state = {
            **super().state_dict(),
            "history": self.history,
            "settings": self._settings,
            "snapshots": self._kept.state_dict(),
            "statistics": self._statistics.state_dict(),
        }
        # Lightning would save one process's shards, and load them without a word
        return gathered(state, keep=rank_zero_only.rank == 0)  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.history = list(state_dict["history"])
        self._kept.load_state_dict(state_dict["snapshots"])
        self._statistics.load_state_dict(state_dict["statistics"])

    # How the hooks do it.

    def _refuse_unknown_length(self) -> None:
        raise MisconfigurationException(
            f"every={self.every} is a fraction of the task, and the task has no known length: give "
            "every as a number of optimizer steps, or set Trainer(max_epochs=…, "
            "limit_train_batches=…) or Trainer(max_steps=…)"
        )

    @property
    def _merges_this_task(self) -> bool:
        return self.task in self._kept.tasks

    def _know_model(self, pl_module: LightningModule) -> dict[str, str]:
        reshard(pl_module)
        self.blocks = find_blocks(pl_module, self.block_patterns)
        self._lora_pairs = find_lora_pairs(pl_module)
        return self._statistics.know_model(pl_module, self.blocks, self._lora_pairs)

    def _reset_optimizers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.optimizer_state == "reset":
            live = named_weights(pl_module)
            forget(trainer.optimizers, [live[name] for name in self.snapshots[-1]])

    def _merge_if_ready(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rule = self.end_rule if self.task_ended and self.end_rule is not None else self.rule
        if not self._merges_this_task:
            return
        with _misconfiguration():
            ready = self._statistics.ready_for(
                rule, trainer, pl_module, self.snapshots, last=self.task_ended
            )
        if ready:
            self._merge(trainer, pl_module, rule)

    def _merge(self, trainer: Trainer, pl_module: LightningModule, rule: MergeRule) -> None:
        strength = 1.0 if self.task_ended and self.end_rule is not None else self.strength
        with _misconfiguration():
            merged = self._snapshot_merge.apply(
                trainer, pl_module, rule, strength, self.blocks, self._lora_pairs
            )
        if merged is not None:
            record = {"task": self.task, "step": self.steps_trained(trainer), **merged}
            self.history.append(record)
            log_scalars(trainer, record_scalars(record))


@contextmanager
def _misconfiguration() -> Iterator[None]:
    """Report what the plain functions find wrong as Lightning users expect it."""
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(f"RecallCallback: {error}") from error
