"""Replay of what a language model has written itself, with no data of earlier tasks."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn import functional

from recall_lightning.callbacks._trainer.misconfiguration import misconfiguration
from recall_lightning.callbacks._trainer.stored_state import check_tensors, count_tensors
from recall_lightning.callbacks._trainer.strategies import check_strategy
from recall_lightning.checks import check_choice, check_count
from recall_lightning.data.sampling import mix_seed
from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.batches import batch_size
from recall_lightning.measuring.generation import write_sequences
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.predictions import Categorical
from recall_lightning.methods.method import Method
from recall_lightning.methods.protecting import ProtectingCallback, ProtectingState
from recall_lightning.weights.naming import named_weights
from recall_lightning.weights.snapshot import Snapshot


class Written(TypedDict):
    """Sequences, int64 (sequences, longest); padding is behind them and masked."""

    input_ids: Tensor
    attention_mask: Tensor


class SelfReplayState(ProtectingState):
    """What a checkpoint holds of it."""

    written: Written | None
    teacher: dict[str, Tensor] | None


class SelfReplay(ProtectingCallback):
    """Adds strength · a loss on sequences that the model wrote before the task, to each batch's.

    At every task's start, the first too, the model writes ``sequences`` sequences as long as those
    of the task's first batch (:func:`~recall_lightning.measuring.generation.write_sequences`),
    which join those of earlier tasks. Each training batch is run together with ``batch_size`` of
    all of them, drawn at random. The loss on these is a mean over their tokens, of

    - ``"divergence"``: KL(p ‖ q) of the model's predictions q from those of the model at the task's
      start, p, in evaluation mode;
    - ``"cross_entropy"``: −ln q of the tokens that were written, which are drawn from p: the same
      gradient on average, with more noise, and no second forward pass.

    Sources: sequences that the model samples from its own distribution, replayed in batches, nearly
    end forgetting (arXiv 2605.26097); Self-Synthesized Rehearsal (SSR, arXiv 2403.01244) also has
    the base model make up instructions from a few real ones, which is left out, as no real ones are
    kept here. The divergence is that of LwF (arXiv 1606.09282) on such sequences.

    It is added right before ``backward``, scaled as the batch's loss is; what the module logs as
    its loss is without it. A step takes about twice as long, three times with the divergence.

    Args:
        strength: What the loss is multiplied by, 0 or more; with 1 a written token counts as one of
            the task.
        sequences: How many the model writes at a task's start.
        batch_size: How many of them a training batch is joined by; by default as many as it has.
        loss: ``"divergence"`` or ``"cross_entropy"``.
        from_first_task: Whether what the model knows before its first task is worth keeping. False
            for a model that starts from random weights: then nothing happens in task 0.
        seed: Of what is written and drawn.
        task_epochs: Only where no datamodule tells the task: epochs a task (int), or each task's
            first epoch (list). Without either, every fit is a task.

    Raises:
        MisconfigurationException: For an argument out of its range, a strategy that shards the
            weights, or a model that is no causal language model.

    Attributes:
        written: All sequences so far; None before the first.
        teacher: The weights at the current task's start; None without a divergence.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SelfReplay(sequences=64)], logger=False)
    """

    state_form: ClassVar[type] = SelfReplayState

    def __init__(
        self,
        strength: float = 1.0,
        sequences: int = 128,
        batch_size: int | None = None,
        loss: Literal["divergence", "cross_entropy"] = "divergence",
        from_first_task: bool = True,
        seed: int = 0,
        task_epochs: int | list[int] | None = None,
    ) -> None:
        super().__init__(from_first_task, task_epochs)
        if not (strength >= 0 and math.isfinite(strength)):
            raise MisconfigurationException(f"strength={strength!r} must be a number from 0 on")
        with misconfiguration():
            check_count("sequences", sequences)
            check_choice("loss", loss, "divergence", "cross_entropy")
            if batch_size is not None:
                check_count("batch_size", batch_size)
        self.strength = strength
        self.sequences = sequences
        self.batch_size = batch_size
        self.loss = loss
        self.seed = seed
        self.written: Written | None = None
        self.teacher: Snapshot | None = None
        self._is_to_write = False  # once the task's first batch shows how long sequences are
        self._drawn: Written | None = None  # for the current batch
        self._taught: Tensor | None = None  # the teacher's logits on them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded weights."""
        super().setup(trainer, pl_module, stage)
        check_strategy(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model that writes nothing."""
        super().on_fit_start(trainer, pl_module)
        if find_generator(pl_module) is None:
            raise MisconfigurationException(
                "SelfReplay needs a causal language model of Hugging Face, which writes what it "
                f"knows, and {type(pl_module).__name__} holds none: use lwf, or replay of samples"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, bring what is kept to the device."""
        super().on_train_start(trainer, pl_module)
        self.written = move_data_to_device(self.written, pl_module.device)
        if self.teacher is not None:
            self.teacher = self.teacher.to_devices_of(named_weights(pl_module))

    def on_task_start(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Keep the teacher's weights; write with the first batch."""
        if self.visit == 0:  # what there is comes from another run
            self.written = None
        self._is_to_write = self.protects
        try:
            taught = self.protects and self.loss == "divergence"
            self.teacher = Snapshot.take(pl_module) if taught else None
        except ValueError as error:
            raise MisconfigurationException(f"SelfReplay: {error}") from error

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw sequences for the batch, and let the teacher read them."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._is_to_write:
            self._is_to_write = False
            self._write(trainer, pl_module, batch)
        self._drawn = self._taught = None
        if self.written is None or self.visit is None or not self.protects:
            return
        number = self.batch_size or batch_size(batch)
        position = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        self._drawn = drawn(self.written, number, mix_seed(self.seed, position))
        if self.teacher is not None:
            with self.teacher.applied_to(pl_module), undisturbed(pl_module):
                self._taught = self._logits(trainer, pl_module, self._drawn)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Add the loss on what was written, in place: it is what ``backward`` is called on."""
        if self._drawn is None:
            return
        predictions = self._logits(trainer, pl_module, self._drawn)
        if self._taught is not None:
            each = Categorical().divergence(predictions, self._taught)
        else:
            each = functional.cross_entropy(
                predictions.float(), tokens(self._drawn), reduction="none"
            )
        extra = self.strength * each.sum() / max(len(each), 1)
        if pl_module.automatic_optimization:  # Lightning has divided the loss already
            extra = extra / trainer.accumulate_grad_batches
            extra = extra * getattr(pl_module, "loss_share", 1.0)  # of a step's mean over tokens
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss.add_((extra if scaler is None else scaler.scale(extra)).to(loss.dtype))

    def on_task_end(self, trainer: Trainer, pl_module: LightningModule, task: int) -> None:
        """Forget what was drawn for the last batch."""
        self._drawn = self._taught = None

    def check_fits(self, weights: Mapping[str, Tensor]) -> None:
        """Check the teacher's names and shapes."""
        check_tensors(self.teacher or {}, weights, "teacher")

    def state_dict(self) -> dict[str, Any]:
        """Return the task, what was written and the teacher's weights."""
        written = None if self.written is None else dict(self.written)
        teacher = None if self.teacher is None else dict(self.teacher)
        state = {**super().state_dict(), "written": written, "teacher": teacher}
        return {**state, "tensors": count_tensors(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.written = state_dict["written"]
        teacher = state_dict["teacher"]
        self.teacher = None if teacher is None else Snapshot(teacher)

    def _write(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        length = 64 if ids is None else max(2, ids.shape[1])
        assert self.visit is not None
        seed = mix_seed(self.seed, self.visit) % 2**31
        with trainer.precision_plugin.forward_context():
            written = write_sequences(pl_module, self.sequences, length, seed)
        own = Written(input_ids=written.ids, attention_mask=written.mask)
        self.written = own if self.written is None else joined([self.written, own])
        rank_zero_info(f"SelfReplay: the model wrote {self.sequences} sequences of {length} tokens")

    def _logits(self, trainer: Trainer, pl_module: LightningModule, given: Written) -> Tensor:
        """Return logits of written tokens, (tokens, vocabulary)."""
        generator = find_generator(pl_module)
        assert generator is not None
        with trainer.precision_plugin.forward_context():
            logits = generator(**given, use_cache=False).logits
        return logits[:, :-1][given["attention_mask"][:, 1:] > 0]


def tokens(written: Written) -> Tensor:
    """Return the tokens that were written, (tokens): all but the first of each sequence.

    >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    >>> tokens(Written(input_ids=torch.tensor([[7, 1, 2], [8, 3, 0]]), attention_mask=mask))
    tensor([1, 2, 3])
    """
    return written["input_ids"][:, 1:][written["attention_mask"][:, 1:] > 0]


def joined(parts: list[Written]) -> Written:
    """Return all sequences, padded to the longest.

    >>> one = Written(input_ids=torch.ones(1, 2), attention_mask=torch.ones(1, 2))
    >>> two = Written(input_ids=torch.ones(1, 3), attention_mask=torch.ones(1, 3))
    >>> joined([one, two])["attention_mask"]
    tensor([[1., 1., 0.],
            [1., 1., 1.]])
    """
    longest = max(part["input_ids"].shape[1] for part in parts)

    def stacked(tensors: list[Tensor]) -> Tensor:
        return torch.cat([functional.pad(one, (0, longest - one.shape[1])) for one in tensors])

    return Written(
        input_ids=stacked([part["input_ids"] for part in parts]),
        attention_mask=stacked([part["attention_mask"] for part in parts]),
    )


def drawn(written: Written, number: int, seed: int) -> Written:
    """Return some of the sequences, without repetition, as long as the longest of them."""
    ids, mask = written["input_ids"], written["attention_mask"]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(ids), generator=generator)[:number].to(ids.device)
    longest = int(mask[chosen].sum(1).max())
    return Written(input_ids=ids[chosen, :longest], attention_mask=mask[chosen, :longest])


METHOD = Method(
    "self_replay",
    "replay of sequences that the model wrote itself",
    SelfReplay,
    keeps_first="from_first_task",
)
