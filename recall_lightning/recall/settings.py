"""Arguments of RecallCallback that belong together, and what each may be."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.checks import check_choice, check_count, is_integer
from recall_lightning.measuring.beginnings import Start
from recall_lightning.measuring.change import detector_of

Buffers = Literal["keep", "merge", "recalibrate"]
Signal = Literal["loss", "representations"]


@dataclass(frozen=True)
class SampleSettings:
    """The typical samples on which hidden states are compared.

    Attributes:
        typical: How many to measure on, per process. More make the measure steadier and a probe
            slower.
        pool: How many candidates they are chosen from.
        sampling: How: ``"k-means"`` over hidden states, or ``"random"``.

    Raises:
        MisconfigurationException: For a value out of its range.

    Example:
        >>> SampleSettings(typical=64).pool
        256
    """

    typical: int = 32
    pool: int = 256
    sampling: Literal["k-means", "random"] = "k-means"

    @misconfiguration()
    def __post_init__(self) -> None:
        if not is_integer(self.typical) or self.typical < 2:
            raise ValueError(
                f"samples.typical={self.typical!r} must be 2 or more: widths come from distances"
            )
        if not is_integer(self.pool) or self.pool < self.typical:
            raise ValueError(
                f"samples.pool={self.pool!r} must be at least samples.typical={self.typical}, "
                "which are chosen from the pool"
            )
        check_choice("samples.sampling", self.sampling, "k-means", "random")


@dataclass(frozen=True)
class ImportanceSettings:
    """Where the importance of parameters comes from.

    Attributes:
        source: ``"optimizer"`` reads it from Adam's state at a task's end, ``"gradients"`` averages
            squared gradients over its last ``steps`` steps, ``"auto"`` does so where the optimizer
            has no such state.
        steps: How many optimizer steps that is.

    Raises:
        MisconfigurationException: For a value out of its range.

    Example:
        >>> ImportanceSettings(source="gradients").steps
        50
    """

    source: Literal["auto", "optimizer", "gradients"] = "auto"
    steps: int = 50

    @misconfiguration()
    def __post_init__(self) -> None:
        check_choice("importance.source", self.source, "auto", "optimizer", "gradients")
        check_count("importance.steps", self.steps)


@dataclass(frozen=True)
class MomentSettings:
    """How the second moments of linear maps are measured and kept.

    Attributes:
        batches: On how many of a task's last batches they are measured, per process.
        labels: Where no embedding or bag is trained, as with most adapters: on no more of those
            batches than hold this many class labels, which of a language model are its tokens.
            Rows of an embedding are rare, and need all.
        width: A side of a map, inputs or outputs, of more entries than this has its moments kept as
            a matrix of rank ``rank`` plus a diagonal.
        rank: That rank.
        source: ``"task"``, or ``"generated"`` for sequences that a causal language model writes
            itself at a task's end (as :class:`PriorSettings` say), where not even moments of the
            data may be kept after it. No checkpoint then holds a training batch, in the midst of a
            task either; the last ``batches`` are in memory until the task's end if a rule needs the
            inputs of the task itself, as ``"kfac_subspace"`` does, and a run that resumes measures
            those on batches that it trains itself.

    Raises:
        MisconfigurationException: For a value out of its range.

    Example:
        >>> MomentSettings(batches=8).width
        512
    """

    batches: int = 16
    labels: int = 4096
    width: int = 512
    rank: int = 32
    source: Literal["task", "generated"] = "task"

    @misconfiguration()
    def __post_init__(self) -> None:
        for name in ("batches", "labels", "width", "rank"):
            check_count(f"moments.{name}", getattr(self, name))
        check_choice("moments.source", self.source, "task", "generated")


@dataclass(frozen=True)
class PriorSettings:
    """How a causal language model writes down itself what it knew before its first task.

    It does so once a run, under the first snapshot, before the first merge; where the moments are
    ``"generated"`` once more at each task's end. Writing a token takes about as long as training on
    one; the sequences are written in one batch with a cache. Each process writes its part of them.

    Attributes:
        sequences: How many sequences, of all processes together.
        tokens: Tokens of each, at most as many as the model has positions.
        starts: What they begin with, in turn, as far as there is such a thing: ``"bos"``, the
            model's first token; ``"chat"``, its chat template up to a user's words, as in Magpie
            (arXiv 2406.08464), and on with the answer; ``"random"``, any token.
        tokenizer: The tokenizer with the chat template, its folder or hub id, where neither the
            datamodule nor the module has it as its attribute ``tokenizer``, and it does not lie
            in the folder that the model was loaded from.

    Raises:
        MisconfigurationException: For a value out of its range.

    Example:
        >>> PriorSettings(sequences=128).tokens
        128
    """

    sequences: int = 64
    tokens: int = 128
    starts: tuple[Start, ...] = ("bos", "chat", "random")
    tokenizer: Any = None

    @misconfiguration()
    def __post_init__(self) -> None:
        check_count("prior.sequences", self.sequences)
        if not is_integer(self.tokens) or self.tokens < 2:
            raise ValueError(f"prior.tokens={self.tokens!r} must be 2 or more")
        if isinstance(self.starts, str) or not self.starts:
            raise ValueError(f"prior.starts={self.starts!r} must be a list of one or more")
        for start in self.starts:
            check_choice("prior.starts", start, *get_args(Start))


@dataclass(frozen=True)
class SnapshotSettings:
    """How many snapshots are kept, and where they live.

    Attributes:
        number: How many tasks' snapshots to keep and merge at once, the weights running over all
            of them and the live model; ``"all"`` keeps every one. Each costs a copy of the
            trainable weights.
        device: Where they live, for example ``"cpu"``; by default beside the weights.
        to: ``"checkpoint"`` keeps them in memory and puts them into every checkpoint; ``"file"``
            writes each once, into a folder ``snapshots`` beside the checkpoints, and reads it
            through a memory map when it merges. Move that folder along with checkpoints.
        on_missing: Where that file is missing, truncated or altered at a resume: ``"error"``, or
            ``"restart_task"`` to let the task start anew, with a snapshot of the weights as they
            are then.
        on_failed_write: Where the file cannot be written, for example on a full disk:
            ``"keep_in_memory"`` warns and goes on as ``"checkpoint"`` does, ``"error"`` stops.

    Raises:
        MisconfigurationException: For a value out of its range, or one that has no effect.

    Example:
        >>> SnapshotSettings(number=3).to
        'checkpoint'
    """

    number: int | Literal["all"] = 1
    device: str | None = None
    to: Literal["checkpoint", "file"] = "checkpoint"
    on_missing: Literal["error", "restart_task"] = "error"
    on_failed_write: Literal["keep_in_memory", "error"] = "keep_in_memory"

    @misconfiguration()
    def __post_init__(self) -> None:
        if self.number != "all" and (not is_integer(self.number) or self.number < 1):
            raise ValueError(
                f"snapshots.number={self.number!r} must be 'all' or how many to keep, 1 or more"
            )
        check_choice("snapshots.to", self.to, "checkpoint", "file")
        check_choice("snapshots.on_missing", self.on_missing, "error", "restart_task")
        check_choice("snapshots.on_failed_write", self.on_failed_write, "keep_in_memory", "error")
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"snapshots.device={self.device!r} must be a device, as 'cpu' or 'cuda:0' "
                    f"({error})"
                ) from error


@dataclass(frozen=True)
class DriftSettings:
    """How changes are noticed in a stream whose tasks nobody announces.

    Attributes:
        detector: What decides: ``"page_hinkley"``, ``"adwin"``, ``"kswin"``, or a drift detector of
            the package ``river``, with a seed if it draws at random. It is given each signal in
            standard deviations from a baseline of its last 30 values or so, where a rise by less
            than a twentieth of what the signal has fallen by in the task is none.
        signals: What is watched, each by a detector of its own, of which one is enough: the
            training ``"loss"``, and with ``"representations"`` the distance of a batch's mean
            hidden state from those of the batches before it, which counts while the loss does not
            fall. It tells changes that the loss does not show, and is wrong more often.
        minimal_steps: Optimizer steps that every task has at least, counted where the loss is
            finite. A change within them goes unnoticed.

    Raises:
        MisconfigurationException: For a value out of its range, or without ``river``.

    Example:
        >>> DriftSettings(minimal_steps=200).signals
        ('loss',)
    """

    detector: Any = "page_hinkley"
    signals: tuple[Signal, ...] = ("loss",)
    minimal_steps: int = 50

    @misconfiguration()
    def __post_init__(self) -> None:
        check_count("boundaries.minimal_steps", self.minimal_steps)
        if isinstance(self.signals, str) or not self.signals:
            raise ValueError(f"boundaries.signals={self.signals!r} must be a list of one or more")
        for signal in self.signals:
            check_choice("boundaries.signals", signal, *get_args(Signal))
        try:
            detector_of(self.detector)
        except (ValueError, ModuleNotFoundError) as error:
            raise ValueError(f"boundaries: {error}") from error


def is_texts(prior: Any) -> bool:
    """Tell whether what the model knew is given as texts.

    >>> is_texts(["a text"]), is_texts([torch.ones(2)])
    (True, False)
    """
    return isinstance(prior, list | tuple) and all(isinstance(each, str) for each in prior)
