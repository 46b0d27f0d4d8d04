"""Language modelling on text files of your own, a domain a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from recall_lightning.data.cells import text_of
from recall_lightning.data.row_errors import BadRows, RowError, RowFaults
from recall_lightning.data.row_files.opening import opened
from recall_lightning.data.rows import is_file, read_rows, unit_of
from recall_lightning.data.stream import TaskStream
from recall_lightning.data.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEQUENCES_PER_BLOCK = 16


@dataclass(frozen=True)
class TextTask:
    """Where the text of one domain is.

    Args:
        name: The task's name.
        train: A text file, a file of rows (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), either
            compressed or not (.gz, .bz2, .xz, .zst), or a folder with any of these, at any depth.
        validation: The same for held-out text; by default a part of ``train`` is held out.
        pattern: Which files of a folder are read, as in ``"*.md"``. Hidden ones never are.
        column: The column of a file of rows that holds the text.
        train_limit: Take only that many training sequences.
        val_limit: The same for held-out ones.
        encoding: What the files are written in, by default UTF-8.
        delimiter: What stands between cells, by default a comma in .csv and a tab in .tsv.
    """

    name: str
    train: str
    validation: str | None = None
    pattern: str = "*"
    column: str = "text"
    train_limit: int | None = None
    val_limit: int | None = None
    encoding: str | None = None
    delimiter: str | None = None


class TextFilesStream(TaskStream):
    """Continual pre-training on text, plain or in rows, a folder or file a task, any tokenizer.

    Documents (a text file, or a row) are put one after the other, each closed by the tokenizer's
    end-of-sequence token, and cut into sequences; a rest that fills none is dropped. Unless a task
    names held-out text, blocks of 16 sequences are drawn at random and held out whole, so that it
    touches training text at the ends of blocks only.

    A sample is a dict of int64 tensors: ``input_ids``, ``labels`` and ``attention_mask`` ``(L,)``,
    and ``num_bytes`` ``()``: the bytes of UTF-8 that the L - 1 predicted tokens stand for, by which
    :class:`~recall_lightning.models.CausalLMModule` logs ``val/bits_per_byte``, to be compared over
    tokenizers. (A character of several tokens counts to the first of them; tokenizers that cannot
    tell where in the text a token is are asked to write the sequence down instead.)

    Args:
        tasks: The tasks, in order.
        tokenizer: Folder or hub id; usually the model's. Of a folder that holds a file of GGUF and
            no tokenizer besides, and of such a file, it is the one in the file.
        sequence_length: Tokens in a sequence, L, at least 2.
        val_fraction: The part of a task's sequences that is held out.
        general: Text that stands for what the model could do before, evaluated along with the tasks
            from the start: what is lost of it is no forgetting between tasks, and shown apart.
            Never trained on; its sequences are ``val_limit`` of ``validation``, else of ``train``.
        bad_rows: ``"skip"`` with a warning what cannot be read as text, or stop with an
            ``"error"``.
        trust_remote_code: Whether a tokenizer may run code of its own.
        **kwargs: Arguments of :class:`~recall_lightning.TaskStream`. Its ``seed`` also chooses
            what is held out.

    Raises:
        MisconfigurationException: If a file is missing or holds too little text, or the tokenizer
            cannot be loaded.
    """

    def __init__(
        self,
        tasks: list[TextTask],
        tokenizer: str,
        sequence_length: int = 1024,
        val_fraction: float = 0.05,
        general: TextTask | None = None,
        bad_rows: BadRows = "skip",
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if sequence_length < 2:
            raise MisconfigurationException(f"sequence_length={sequence_length} must be 2 or more.")
        if not 0 < val_fraction < 1:
            raise MisconfigurationException(f"val_fraction={val_fraction} must be between 0 and 1.")
        self.tasks = tasks
        self.sequence_length = sequence_length
        self.val_fraction = val_fraction
        self.general = general
        self.bad_rows = bad_rows
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(tokenizer, trust_remote_code)
        self._splits: dict[int, tuple[_Sequences, _Sequences]] = {}
        _ = self.total_epochs  # checks names and epochs

    @property
    def task_names(self) -> list[str]:
        """The tasks' names."""
        return [task.name for task in self.tasks]

    @property
    def probe_names(self) -> list[str]:
        """The name of the general text, if there is one."""
        return [] if self.general is None else [self.general.name]

    def train_dataset(self, task: int) -> Dataset[dict[str, Tensor]]:
        """Training sequences of ``task``."""
        return self._split(task)[0]

    def val_dataset(self, task: int) -> Dataset[dict[str, Tensor]]:
        """Held-out sequences of ``task``."""
        return self._split(task)[1]

    def probe_dataset(self, probe: int) -> Dataset[dict[str, Tensor]]:
        """Sequences of the general text."""
        assert self.general is not None
        where = self.general.validation or self.general.train
        return self._read(self.general, where).first(self.general.val_limit)

    def _split(self, task: int) -> tuple[_Sequences, _Sequences]:
        """Training and held-out sequences."""
        if task not in self._splits:
            own = self.tasks[task]
            train = self._read(own, own.train)
            if own.validation is not None:
                val = self._read(own, own.validation)
            else:
                train, val = self._hold_out(own, train)
            self._splits[task] = train.first(own.train_limit), val.first(own.val_limit)
        return self._splits[task]

    def _hold_out(self, task: TextTask, found: _Sequences) -> tuple[_Sequences, _Sequences]:
        held_out = max(1, round(self.val_fraction * len(found)))
        if held_out >= len(found):
            raise MisconfigurationException(
                f"task {task.name!r}: {task.train} makes {len(found)} sequences of "
                f"sequence_length={self.sequence_length} tokens, of which none is left to train on "
                "beside those held out: shorten them, or give more text"
            )
        size = min(_SEQUENCES_PER_BLOCK, held_out)
        blocks = torch.arange(len(found)).split(size)
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(self.seed))
        shuffled = torch.cat([blocks[block] for block in order.tolist()])
        return found.at(shuffled[held_out:]), found.at(shuffled[:held_out])

    def _read(self, task: TextTask, where: str) -> _Sequences:
        """Tokenise files and cut them into sequences."""
        faults = RowFaults(f"task {task.name!r}, {where}")
        tokens, sizes = [], []
        for text in self._documents(task, where, faults):
            document = self._encode(text)
            tokens.append(document[0])
            sizes.append(document[1])
        faults.say()
        together = [torch.cat(parts) if parts else torch.empty(0) for parts in (tokens, sizes)]
        count = len(together[0]) // self.sequence_length
        if count == 0:
            left = f" ({faults.bad} documents were left out: {faults.first})" if faults.bad else ""
            raise MisconfigurationException(
                f"{faults.where} holds {len(together[0])} tokens, too few for a sequence of "
                f"sequence_length={self.sequence_length}: shorten it, or give more text{left}"
            )
        cut = [part[: count * self.sequence_length].view(count, -1) for part in together]
        return _Sequences(cut[0], cut[1][:, 1:].sum(1))

    def _documents(self, task: TextTask, where: str, faults: RowFaults) -> Iterator[str]:
        for file in _files(task, where):
            for which, text in _texts(task, file):
                faults.rows += 1
                if isinstance(text, RowError):
                    faults.add(which, text, self.bad_rows)
                else:
                    yield text

    def _encode(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens of a document, and the bytes that each stands for: int32 ``(tokens,)``."""
        tokenizer = self.tokenizer
        found: Any = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        tokens = list(found["input_ids"])
        if tokens[-1:] != [tokenizer.eos_token_id]:
            tokens.append(tokenizer.eos_token_id)
        if tokenizer.is_fast:
            sizes = _bytes_of(text, found["offset_mapping"])
        else:
            sizes = [len(tokenizer.decode([token]).encode()) for token in found["input_ids"]]
        sizes += [0] * (len(tokens) - len(sizes))
        return torch.tensor(tokens, dtype=torch.int32), torch.tensor(sizes, dtype=torch.int32)


class _Sequences(Dataset[dict[str, Tensor]]):
    """Samples of a causal language model: tokens int32 ``(N, L)``, bytes of each int32 ``(N,)``."""

    def __init__(self, tokens: Tensor, num_bytes: Tensor) -> None:
        self.tokens, self.num_bytes = tokens, num_bytes

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.tokens[index].long()
        ones, num_bytes = torch.ones_like(tokens), self.num_bytes[index].long()
        return {
            "input_ids": tokens,
            "labels": tokens,
            "attention_mask": ones,
            "num_bytes": num_bytes,
        }

    def at(self, indices: Tensor) -> _Sequences:
        return _Sequences(self.tokens[indices], self.num_bytes[indices])

    def first(self, limit: int | None) -> _Sequences:
        return _Sequences(self.tokens[:limit], self.num_bytes[:limit])


def _files(task: TextTask, where: str) -> list[str]:
    """The file, or the files of a folder, in the order of their names."""
    path = Path(where)
    if path.is_file():
        return [where]
    if not path.is_dir():
        raise MisconfigurationException(
            f"task {task.name!r} must name a file or folder that is there, not {where} (looked for "
            f"in {Path.cwd()})"
        )
    found = [
        str(file)
        for file in sorted(path.rglob(task.pattern))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise MisconfigurationException(
            f"task {task.name!r}: the folder {where} has no files like {task.pattern!r}; name "
            "another folder or pattern"
        )
    return found


def _texts(task: TextTask, file: str) -> Iterator[tuple[str, str | RowError]]:
    """The documents of a file, each with where it stands; or what is wrong with the file."""
    try:
        if not is_file(file):
            with opened(file, task.encoding) as text:
                yield file, _text_of({"it": text.read()}, "it")
            return
        for number, row in read_rows(file, encoding=task.encoding, delimiter=task.delimiter):
            yield f"{file}, {unit_of(file)} {number}", _text_of(row, task.column)
    except MisconfigurationException as error:
        yield file, RowError(str(error))


def _text_of(row: dict[str, Any] | RowError, column: str) -> str | RowError:
    if isinstance(row, RowError):
        return row
    if column not in row:
        return RowError(f"it has no column {column!r}, but {', '.join(map(repr, row))}")
    text = row[column]
    if not isinstance(text, str | bytes | None):
        return RowError(f"{column} holds {text!r}, and no text")
    try:
        return text_of(text, column)
    except RowError as error:
        return error


def _bytes_of(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Deal a text's bytes out to its tokens, each to the first token that reaches it.

    >>> _bytes_of("aé b", [(0, 0), (0, 1), (1, 2), (1, 2), (3, 4)])
    [0, 1, 2, 0, 2]
    """
    sizes, reached = [], 0
    for _, end in spans:
        sizes.append(len(text[reached:end].encode()))
        reached = max(reached, end)
    return sizes
