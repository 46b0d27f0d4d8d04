"""A stream of instruction tasks: prompts with answers, from files or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from recall_lightning.data.instructions import cache
from recall_lightning.data.instructions.collating import (
    Question,
    collate,
    collate_packed,
    collate_questions,
)
from recall_lightning.data.instructions.conversations import Conversation
from recall_lightning.data.instructions.encoding import Encoded, Encoder, packed
from recall_lightning.data.instructions.examples import Example
from recall_lightning.data.instructions.templates import Template, template_of
from recall_lightning.data.instructions.words import bleu_tokenizer, check_words
from recall_lightning.data.row_errors import BadRows, Row, RowError, RowFaults
from recall_lightning.data.row_files.opening import ending_of
from recall_lightning.data.rows import has_header, is_file, read_rows, unit_of
from recall_lightning.data.stream import TaskStream
from recall_lightning.data.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class InstructionTask:
    """Where the rows of one task are, and what is made of them.

    Args:
        name: The task's name.
        template: Name of one that ships (``"sst2"``, ``"squad_v2"``, ``"iwslt2017_en_fr"``,
            ``"race"``, ``"medmcqa"``; ``"alpaca"``, and ``"messages"`` or ``"sharegpt"`` for
            conversations), or one of your own.
        train: Training rows: a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, text compressed
            or not: .gz, .bz2, .xz, .zst), or a split's name.
        validation: The same for held-out rows.
        data: Hub id or folder of the data set whose splits these are.
        config: The data set's configuration.
        revision: A branch, tag or commit of the hub's; ``"refs/convert/parquet"`` is where the hub
            keeps what scripts would make, which ``datasets`` no longer runs.
        data_dir: A folder of the data set to look for files in.
        train_limit: Take only that many training rows, from the front.
        val_limit: The same for held-out rows.
        encoding: What files of text are written in, by default UTF-8.
        delimiter: What stands between their cells, by default a comma in .csv and a tab in .tsv.
    """

    name: str
    template: str | Template | Conversation
    train: str = "train"
    validation: str = "validation"
    data: str | None = None
    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    train_limit: int | None = None
    val_limit: int | None = None
    encoding: str | None = None
    delimiter: str | None = None


@dataclass
class _Faults(RowFaults):
    """What was wrong with rows, and what was cut.

    Attributes:
        shortened: How many prompts lost their beginning.
        unseen: Optional columns that no row has had so far.
    """

    shortened: int = 0
    unseen: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, task: InstructionTask, split: str) -> _Faults:
        return cls(f"task {task.name!r}, {split}")

    def say(self) -> None:
        super().say()
        if self.shortened:
            rank_zero_warn(
                f"{self.where}: {self.shortened} of {self.rows} prompts were too long for "
                "max_length and lost their beginning"
            )
        if self.unseen and self.rows:
            rank_zero_warn(
                f"{self.where}: no row has {', '.join(map(repr, self.unseen))}, so the template's "
                "section of it is always left out"
            )


class InstructionStream(TaskStream):
    """Tasks of prompts with answers, one after the other, for a causal language model.

    A row becomes a prompt and its answer by the task's template; the answer alone is learned. Every
    task is scored on its held-out rows by its template's score, which
    :class:`~recall_lightning.models.CausalLMModule` logs as ``val/score``.

    Rows that the template can make nothing of are counted and reported with the number of the first
    of them. Prompts that are too long for ``max_length`` lose their beginning, in validation what
    they lose in training, and are counted too; a template whose own text leaves no room is refused.
    A written answer may go beyond ``max_length``, by up to its template's ``max_new_tokens``.

    Args:
        tasks: The tasks, in order.
        tokenizer: Folder or hub id; usually the model's. Of a folder that holds a file of GGUF and
            no tokenizer besides, and of such a file, it is the one in the file.
        max_length: The most tokens of prompt and answer together.
        chat: Whether the tokenizer's chat template wraps prompt and answer.
        pack: Whether to put several examples into each training sequence, as many as fit; they do
            not see each other. :class:`~recall_lightning.models.CausalLMModule` proves that on its
            model before it trains, and refuses one in which they do, such as Mamba, models with
            ALiBi, or OPT. ``batch_size`` then counts sequences.
        bad_rows: ``"skip"`` them with a warning, or stop with an ``"error"``.
        streaming: Whether to read training rows anew in every epoch instead of keeping them: for
            data sets that are larger than the memory. They come in their order.
        cache: Folder for tokenised training data, found again as long as file, template and
            tokenizer are the same. Data from the hub is not cached here.
        trust_remote_code: Whether a tokenizer may run code of its own.
        general: A task that stands for what the model could do before: scored along with the others
            from the start, and never trained. What is lost of it is shown apart from forgetting.
        epochs_per_task: Epochs of every task, or one number a task.
        batch_size: Examples, or packed sequences, in a training batch.
        eval_batch_size: Questions in a validation batch. Defaults to ``batch_size``.
        num_workers: Worker processes of each loader.
        seed: Seed of the order of samples.
        joint: Whether to train on all tasks at once.
        order: The tasks in the order of training, by index from 0, where some come back.

    Raises:
        MisconfigurationException: For files, columns or tokenizers that do not fit; each names what
            was wrong, and where.
    """

    def __init__(
        self,
        tasks: list[InstructionTask],
        tokenizer: str,
        max_length: int = 1024,
        chat: bool = False,
        pack: bool = False,
        bad_rows: BadRows = "skip",
        streaming: bool = False,
        cache: str | None = None,
        trust_remote_code: bool = False,
        general: InstructionTask | None = None,
        *,
        epochs_per_task: int | list[int] = 1,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        joint: bool = False,
        order: list[int] | None = None,
    ) -> None:
        super().__init__(
            epochs_per_task=epochs_per_task,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            joint=joint,
            order=order,
        )
        if pack and streaming:
            raise MisconfigurationException(
                "pack=True groups rows that are kept, and streaming=True keeps none: drop one"
            )
        self.tasks = tasks
        self.max_length = max_length
        self.chat = chat
        self.pack = pack
        self.bad_rows = bad_rows
        self.streaming = streaming
        self.cache = cache
        self.general = general
        self.templates = [_template(task, chat) for task in self._scored]
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(tokenizer, trust_remote_code)
        together = collate_packed if pack else collate
        self.collate_fn = partial(together, pad=self.tokenizer.pad_token_id)
        _ = self.total_epochs  # checks names and epochs
        _ = self.encoder(0)  # checks the chat template

    @property
    def task_names(self) -> list[str]:
        """The tasks' names."""
        return [task.name for task in self.tasks]

    @property
    def probe_names(self) -> list[str]:
        """The name of the general task, if there is one."""
        return [] if self.general is None else [self.general.name]

    @property
    def _scored(self) -> list[InstructionTask]:
        return [*self.tasks, *([self.general] if self.general is not None else [])]

    def check_training_data(self) -> None:
        """Read every task's first training example, so that none is found wrong when it starts."""
        for task, own in enumerate(self.tasks):
            if is_file(own.train):  # what lies elsewhere may take hours to fetch
                faults = _Faults.of(own, own.train)
                first = self._examples(task, own.train, own.train_limit, faults, lambda e: e)
                self._not_empty(list(islice(first, 1)), faults)

    def setup(self, stage: str) -> None:
        """Say where nobody proves that packed examples do not see each other."""
        super().setup(stage)
        module = None if self.trainer is None else self.trainer.lightning_module
        if self.pack and stage == "fit" and not getattr(module, "proves_packing", module is None):
            rank_zero_warn(
                f"pack=True: {type(module).__name__} has to hand position_ids to a model that "
                "keeps examples apart by them. CausalLMModule proves that; here nobody does: see "
                "recall_lightning.models.packing.packing_fault"
            )

    def train_dataset(self, task: int) -> Dataset[Any]:
        """Tokenised prompts with answers, or groups of them where they are packed."""
        if self.streaming:
            return _Streamed(self, task)
        examples = self._cached(task)
        data: Any = packed(examples, self.max_length) if self.pack else examples
        return _Listed(data)

    def val_dataset(self, task: int) -> Dataset[Any]:
        """Held-out prompts, with what is needed to score answers."""
        faults = _Faults.of(self._scored[task], self._scored[task].validation)
        questions = list(self._questions(task, faults))
        faults.say()
        try:
            check_words(self.templates[task], (r for q in questions for r in q.references))
        except ValueError as error:
            name = self._scored[task].name
            raise MisconfigurationException(f"task {name!r}: {error}") from error
        return _Listed(self._not_empty(questions, faults))

    def probe_dataset(self, probe: int) -> Dataset[Any]:
        """Held-out prompts of the general task."""
        return self.val_dataset(len(self.tasks) + probe)

    def val_dataloader(self) -> list[Any]:
        """One loader for each task and probe, in order, each collated for its score."""
        loaders = super().val_dataloader()
        for task, (loader, template) in enumerate(zip(loaders, self.templates, strict=True)):
            encoder = self.encoder(task)
            loader.collate_fn = partial(
                collate_questions,
                pad=self.tokenizer.pad_token_id,
                score=template.score,
                no_answer=template.no_answer or "",
                max_new_tokens=template.max_new_tokens,
                tokenizer=bleu_tokenizer(template) if template.score == "bleu" else "13a",
                end_token=encoder.end_token,
                end_text=encoder.end_text,
            )
        return loaders

    def encoder(self, task: int) -> Encoder:
        """What turns the task's examples into tokens."""
        separator = self.templates[task].separator
        return Encoder(self.tokenizer, self.max_length, separator, self.chat)

    def encoded(self, task: int, faults: _Faults) -> Iterator[Encoded]:
        """Read, fill in and tokenise the training rows of a task."""
        encoder, limit = self.encoder(task), self.tasks[task].train_limit
        for found in self._examples(task, self.tasks[task].train, limit, faults, encoder.encode):
            faults.shortened += found.lost > 0
            yield found

    def _cached(self, task: int) -> list[Encoded]:
        own = self.tasks[task]
        faults = _Faults.of(own, own.train)
        path = None
        if self.cache is not None and is_file(own.train) and Path(own.train).is_file():
            read = [cache.content_of(own.train), ending_of(own.train), own.encoding, own.delimiter]
            parts = [self.templates[task], self.max_length, self.chat, own.train_limit]
            key = cache.key_of(self.tokenizer, *read, *parts)
            path = Path(self.cache, f"{key}.safetensors")
        if path is not None and path.is_file():
            examples, notes = cache.load(path)
            faults = _Faults(faults.where, **json.loads(notes["faults"]))
            if faults.bad and self.bad_rows == "error":
                faults.refuse()
        else:
            examples = list(self.encoded(task, faults))
            if path is not None and examples:
                said = {k: v for k, v in vars(faults).items() if k != "where"}
                cache.save(examples, {"faults": json.dumps(said)}, path)
        faults.say()
        return self._not_empty(examples, faults)

    def _questions(self, task: int, faults: _Faults) -> Iterator[Question]:
        encoder, template = self.encoder(task), self.templates[task]

        def question(example: Example) -> Question:
            right = encoder.encode(example)
            if template.writes:
                return Question(
                    right, prompt=right.asked, references=example.references, lead=right.lead
                )
            return Question(
                right,
                tuple(encoder.encode_choices(example)),
                example.label,
                choice_bytes=tuple(len(choice.encode()) for choice in example.choices),
            )

        own = self._scored[task]
        for found in self._examples(task, own.validation, own.val_limit, faults, question):
            faults.shortened += found.right.lost > 0
            yield found

    def _examples(
        self, task: int, split: str, limit: int | None, faults: _Faults, make: Any
    ) -> Iterator[Any]:
        own, template = self._scored[task], self.templates[task]
        rows = self._rows(own, split)
        faults.unseen = template.optional_columns
        checked = not has_header(split)
        for number, row in islice(rows, limit):
            faults.rows += 1
            try:
                if isinstance(row, RowError):
                    raise row
                unknown = self._unknown_columns(task, row)
                if unknown and not checked:
                    raise MisconfigurationException(
                        f"task {own.name!r}: its template needs {unknown} (where {split} has no "
                        "header, give it one)"
                    )
                checked = True
                if unknown:
                    raise RowError(f"the template needs {unknown}")
                faults.unseen = [column for column in faults.unseen if column not in row]
                yield make(template.example(row))
            except RowError as error:
                faults.add(f"{unit_of(split)} {number}", error, self.bad_rows)
        if faults.shortened:
            self._check_fits(task)

    def _rows(self, own: InstructionTask, split: str) -> Iterator[Row]:
        parts = (own.data, own.config, own.revision, own.data_dir, self.streaming)
        try:
            yield from read_rows(split, *parts, own.encoding, own.delimiter)
        except MisconfigurationException as error:
            raise MisconfigurationException(f"task {own.name!r}: {error}") from error

    def _check_fits(self, task: int) -> None:
        try:
            self.encoder(task).check_fits(self.templates[task].fixed_prompt)
        except MisconfigurationException as error:
            raise MisconfigurationException(f"task {self._scored[task].name!r}: {error}") from None

    def _unknown_columns(self, task: int, row: dict[str, Any]) -> str:
        """Name the columns that a row lacks, and those that it has; empty if it lacks none."""
        unknown = [name for name in self.templates[task].columns if name not in row]
        if not unknown:
            return ""
        return f"the column {', '.join(map(repr, unknown))}, and it has {', '.join(map(repr, row))}"

    def _not_empty(self, found: list[Any], faults: _Faults) -> list[Any]:
        if found:
            return found
        why = f": {faults.bad} rows were left out; the first: {faults.first}" if faults.bad else ""
        raise MisconfigurationException(f"{faults.where} has no rows to use{why}; give it some")


class _Listed(Dataset[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class _Streamed(IterableDataset[Encoded]):
    """Reads rows anew in every epoch; each process and worker takes its own share of them.

    All processes get as many, or those with more would wait for the others at every step's end:
    where the processes do not divide the rows, the first rows come twice, as in a
    ``DistributedSampler``.
    """

    def __init__(self, stream: InstructionStream, task: int) -> None:
        self.stream, self.task = stream, task

    def __iter__(self) -> Iterator[Encoded]:
        own = self.stream.tasks[self.task]
        faults = _Faults.of(own, own.train)
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        processes = torch.distributed.get_world_size() if distributed else 1
        rank = torch.distributed.get_rank() if distributed else 0
        rows = _filled_up(self.stream.encoded(self.task, faults), processes)
        first = next(rows, None)
        self.stream._not_empty([] if first is None else [first], faults)
        together = chain([first], rows)
        yield from islice(together, number * processes + rank, None, processes * workers)
        faults.say()


def _filled_up(rows: Iterator[Any], parts: int) -> Iterator[Any]:
    """Repeat the first rows behind the last, until so many parts are equally long.

    >>> list(_filled_up(iter("abcde"), 3)), list(_filled_up(iter("a"), 3))
    (['a', 'b', 'c', 'd', 'e', 'a'], ['a', 'a', 'a'])
    """
    kept, count = [], 0
    for row in rows:
        kept += [row] if count < parts else []
        count += 1
        yield row
    yield from islice(cycle(kept), -count % parts)


def _template(task: InstructionTask, chat: bool) -> Template | Conversation:
    try:
        template = template_of(task.template)
        if template.score == "bleu":
            bleu_tokenizer(template)
    except ValueError as error:
        raise MisconfigurationException(f"task {task.name!r}: {error}") from error
    if not chat and (isinstance(template, Conversation) or template.system):
        raise MisconfigurationException(
            f"task {task.name!r}: conversations and system prompts are written by the tokenizer's "
            "chat template: set chat=True"
        )
    return template
