"""What a model knew before its first task: what it writes itself, or what its user says it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from recall_lightning.measuring.architecture import find_generator
from recall_lightning.measuring.beginnings import available, beginnings
from recall_lightning.measuring.degenerate import why_degenerate
from recall_lightning.measuring.generation import Written, nats_of, write_sequences
from recall_lightning.measuring.isolation import isolated_rng, undisturbed
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.recall.context import TaskContext
from recall_lightning.recall.model_run import ModelRun
from recall_lightning.recall.settings import PriorSettings, is_texts
from recall_lightning.weights.sharding import reshard

TOKENS_AT_ONCE = 512  # of what was written, when the model is run on it with gradients
_LONGEST_TEXT = 512


class Prior:
    """Batches of what a model knew before its first task, of which there is no training data.

    They are the user's own, texts or batches; else a causal language model writes sequences, and of
    any other model there is nothing. Nothing of the user's is kept.

    Args:
        given: Settings of what a language model writes, or the user's texts or batches.
        most: How many batches of the user's own are read, by each process.
        run: How the model is run on a batch.
        seed: Of what is written.
    """

    def __init__(
        self, given: PriorSettings | Iterable[Any] | None, most: int, run: ModelRun, seed: int
    ) -> None:
        self.settings = given if isinstance(given, PriorSettings) else PriorSettings()
        self._given = None if isinstance(given, PriorSettings) else given
        self._is_asked_to_write = isinstance(given, PriorSettings)
        self._most = most
        self._run = run
        self._seed = seed

    def check(self, context: TaskContext) -> None:
        """Before the first task, find out whether the model can write as it is asked to.

        Raises:
            ValueError: If it cannot.
        """
        module = context.pl_module
        generator = find_generator(module)
        if self._is_asked_to_write and generator is None:
            raise ValueError(
                "prior=PriorSettings(…) needs a causal language model of Hugging Face, which "
                f"{type(module).__name__} does not hold: give a DataLoader of what it knew"
            )
        if self._given is None and generator is not None:
            available(self.settings.starts, beginnings(generator, self._tokenizer(context)))

    def check_batch(self, context: TaskContext) -> None:
        """Run the model on the user's own batches.

        Raises:
            ValueError: If there is none, or it cannot be run.
        """
        if self._given is None:
            return
        module, batches = context.pl_module, self._own_batches(context)
        try:
            with undisturbed(module), self._run.ready(context) as view:
                for batch in batches:
                    (self._own_view(module) or view).forward(module, batch)
        except ValueError as error:
            raise ValueError(f"prior=: {error}") from error

    @property
    def is_given(self) -> bool:
        """Whether they are the user's own."""
        return self._given is not None

    @property
    def given_batches(self) -> int:
        """How many of the user's own are read at most."""
        return min(self._most, len(self._given)) if isinstance(self._given, Sized) else self._most

    def is_known(self, module: torch.nn.Module) -> bool:
        """Tell whether there are batches at all."""
        return self.is_given or find_generator(module) is not None

    def batches(self, context: TaskContext) -> tuple[list[Any], ModelView | None]:
        """Return this process's batches, and the view for them if it is not the model's own."""
        if self._given is None:
            return self.written(context, "before its first task", _FOR_THE_FIRST)
        batches = self._own_batches(context)
        rank_zero_info(f"{len(batches)} batches of prior= are what the model knew before")
        return batches, self._own_view(context.pl_module)

    def written(
        self, context: TaskContext, when: str, advice: str = ""
    ) -> tuple[list[Any], ModelView]:
        """Let the model write; say so where that is no text of its kind.

        Args:
            context: The task.
            when: Of which time it tells what the model knew.
            advice: What to do about it where it is no such text.
        """
        module, trainer, settings = context.pl_module, context.trainer, self.settings
        generator: Any = find_generator(module)
        begun = available(settings.starts, beginnings(generator, self._tokenizer(context)))
        own = -(-settings.sequences // trainer.world_size)
        started = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            seed = self._seed + trainer.global_rank
            written = write_sequences(module, own, settings.tokens, seed, begun)
            why = why_degenerate(written, generator.config.vocab_size, nats_of(module, written))
        reshard(module)
        rank_zero_info(
            f"the model wrote {own} sequences of {written.ids.shape[1]} tokens, for what it knew "
            f"{when}, in {time.perf_counter() - started:.1f} s"
        )
        if why is not None:
            rank_zero_warn(
                f"RecallCallback: what the model wrote itself, for what it knew {when}, is "
                f"degenerate: {why}. Merges will protect little of what it can do{advice}"
            )
        return self._parted(written), view_of_writer(module)

    def _own_view(self, module: LightningModule) -> ModelView | None:
        texts = is_texts(self._given) and find_generator(module) is not None
        return view_of_writer(module) if texts else None

    def _parted(self, written: Written) -> list[Any]:
        return list(written.batches(max(1, TOKENS_AT_ONCE // written.ids.shape[1])))

    def _own_batches(self, context: TaskContext) -> list[Any]:
        """Read batches as the Trainer would, every process others; no random state changes."""
        trainer, given = context.trainer, self._given
        assert given is not None
        rank, world = trainer.global_rank, trainer.world_size
        with isolated_rng():
            source = self._encoded(context, list(given)) if is_texts(given) else given
            batches = list(islice(source, rank, self._most * world, world))
            batches = batches or list(islice(source, 1))  # fewer than there are processes
        if not batches:
            raise ValueError("prior= gives no batch: give one of what the model knew before")
        return [_moved(batch, trainer, context.pl_module) for batch in batches]

    def _encoded(self, context: TaskContext, texts: Sequence[str]) -> list[Any]:
        tokenizer = self._tokenizer(context)
        if tokenizer is None:
            raise ValueError(
                "prior= is texts, and there is no tokenizer for them: the datamodule or the module "
                "may have one as its attribute tokenizer; or give a DataLoader of batches"
            )
        encoded = [
            tokenizer(text, truncation=True, max_length=_LONGEST_TEXT, return_tensors="pt")
            for text in texts
        ]
        named = ("input_ids", "attention_mask")  # one text each: none needs padding
        batches = [{name: one[name] for name in named if name in one} for one in encoded]
        return [batch for batch in batches if batch["input_ids"].numel() > 1]

    def _tokenizer(self, context: TaskContext) -> Any | None:
        return find_tokenizer(context.trainer, context.pl_module, self.settings.tokenizer)


_FOR_THE_FIRST = (
    ": pass prior= texts or a DataLoader of what it is to keep, or merge_first_task=False if it "
    "starts from random weights"
)


def find_tokenizer(
    trainer: Trainer, module: LightningModule, own: str | Any | None = None
) -> Any | None:
    """Return the tokenizer of a model: the given one, the datamodule's, or the module's.

    Where none of them has the attribute ``tokenizer``, it is read from where transformers loaded
    the model from, if that is a folder.

    Args:
        trainer: The Trainer.
        module: The model.
        own: A tokenizer of transformers, or the folder or hub id of one.
    """
    owners = (getattr(trainer, "datamodule", None), module)
    found = own or next((t for o in owners if (t := getattr(o, "tokenizer", None))), None)
    if found is None:
        found = getattr(getattr(find_generator(module), "config", None), "_name_or_path", None)
        if not found or not os.path.isdir(found):
            return None
    if not isinstance(found, str | os.PathLike):
        return found
    from transformers import AutoTokenizer  # heavy

    try:
        return AutoTokenizer.from_pretrained(found)
    except (OSError, ValueError) as error:
        if own is None:
            return None
        raise ValueError(
            f"prior.tokenizer={own!r} cannot be loaded ({type(error).__name__}): give a folder "
            "that save_pretrained wrote, a hub id, or the tokenizer itself"
        ) from error


def _moved(batch: Any, trainer: Trainer, module: LightningModule) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    return trainer.strategy.batch_to_device(batch, module.device)


def view_of_writer(module: torch.nn.Module) -> ModelView:
    """Return a view that runs the causal language model inside a module on sequences alone."""
    generator: Any = find_generator(module)

    def forward(_: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
        return generator(**batch)

    return view_of(module).with_forward(forward)
