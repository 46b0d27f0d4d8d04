"""Text that every Python interpreter carries, as a stream of language modelling tasks."""

from __future__ import annotations

import dis
import os
import sys
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from recall_lightning.data.stream import TaskStream

_SEQUENCES_PER_BLOCK = 16
# Tests, what does not belong to the library, and tables that a program wrote.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages"}
_SKIPPED_FOLDERS |= {"pydoc_data", "encodings", "__pycache__"}
_SKIPPED_FILES = ("_sysconfigdata", "entities.py", "_casefix.py")


class StdlibTextStream(TaskStream):
    """Byte-level language modelling on the interpreter's own text: no download, no tokenizer.

    The domains, any of which can be a task:

    - ``documentation``: the language reference that ``help()`` shows, English prose.
    - ``source``: Python source of the standard library.
    - ``names``: the names of the Unicode characters, one a line. Names that are only a number in
      disguise are left out, as they would be most of the text: those that end in their own code
      point (``CJK UNIFIED IDEOGRAPH-4E00`` and the like) and the Hangul syllables.
    - ``disassembly``: the instructions that ``source`` compiles to, as :mod:`dis` lists them, one a
      line: a language for machines.
    - ``bytecode``: the same instructions as raw bytes: as far from text as bytes get.

    A text is cut into blocks of 16 sequences, and whole blocks are drawn at random for training or
    held out. Held-out text therefore never touches training text except at the ends of a block. The
    text depends on the Python version, and for a given version on ``seed`` alone.

    A sample is a dict of int64 tensors: ``input_ids`` ``(L,)``, byte values from 0 to 255;
    ``labels`` ``(L,)``, the same (the model shifts them); ``attention_mask`` ``(L,)``, ones; and
    ``num_bytes`` ``()``, the ``L - 1`` bytes that are predicted.

    Example::

        >>> stream = StdlibTextStream(tasks=["documentation"], train_sequences=64, val_sequences=16)
        >>> sample = stream.train_dataset(0)[0]
        >>> {name: tuple(tensor.shape) for name, tensor in sample.items()}
        {'input_ids': (64,), 'labels': (64,), 'attention_mask': (64,), 'num_bytes': ()}

    Args:
        tasks: The domains, in the order of training.
        sequence_length: Bytes in a sequence, L, at least 2.
        train_sequences: Training sequences of each task.
        val_sequences: Held-out sequences of each task.
        **kwargs: Arguments of :class:`~recall_lightning.TaskStream`. Its ``seed`` also chooses
            the files and the held-out blocks.

    Raises:
        MisconfigurationException: If a task is unknown or named twice, a size is too small, or,
            once its data is asked for, a domain has too little text.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str] = ("documentation", "source", "disassembly", "names"),
        sequence_length: int = 64,
        train_sequences: int = 5120,
        val_sequences: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown = [task for task in tasks if task not in _DOMAINS]
        if unknown:
            raise MisconfigurationException(
                f"tasks={list(tasks)} has unknown {unknown}; choose from {list(_DOMAINS)}."
            )
        for name, value, least in (
            ("sequence_length", sequence_length, 2),
            ("train_sequences", train_sequences, 1),
            ("val_sequences", val_sequences, 1),
        ):
            if value < least:
                raise MisconfigurationException(f"{name}={value} must be {least} or more.")
        self._tasks = list(tasks)
        self.sequence_length = sequence_length
        self.train_sequences = train_sequences
        self.val_sequences = val_sequences
        self._splits: dict[int, tuple[Tensor, Tensor]] = {}
        _ = self.total_epochs  # checks names and epochs now rather than in setup

    @property
    def task_names(self) -> list[str]:
        """The domains, in the order of training."""
        return self._tasks

    def train_dataset(self, task: int) -> Dataset[dict[str, Tensor]]:
        """Training sequences of ``task``."""
        return _ByteSequences(self._split(task)[0])

    def val_dataset(self, task: int) -> Dataset[dict[str, Tensor]]:
        """Held-out sequences of ``task``."""
        return _ByteSequences(self._split(task)[1])

    def _split(self, task: int) -> tuple[Tensor, Tensor]:
        """Training and held-out sequences, each uint8 ``(sequences, L)``."""
        if task not in self._splits:
            self._splits[task] = self._read(self._tasks[task])
        return self._splits[task]

    def _read(self, domain: str) -> tuple[Tensor, Tensor]:
        block_bytes = _SEQUENCES_PER_BLOCK * self.sequence_length
        val_blocks = -(-self.val_sequences // _SEQUENCES_PER_BLOCK)
        blocks = val_blocks + -(-self.train_sequences // _SEQUENCES_PER_BLOCK)
        text = _DOMAINS[domain](blocks * block_bytes, self.seed)
        if len(text) < blocks * block_bytes:
            raise MisconfigurationException(
                f"The task '{domain}' has {len(text)} bytes, but train_sequences="
                f"{self.train_sequences} and val_sequences={self.val_sequences} of sequence_length="
                f"{self.sequence_length} need {blocks * block_bytes} (in whole blocks of"
                f" {_SEQUENCES_PER_BLOCK} sequences). Ask for fewer or shorter sequences."
            )
        available = len(text) // block_bytes
        cut = torch.frombuffer(bytearray(text[: available * block_bytes]), dtype=torch.uint8)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(available, generator=generator)[:blocks]
        sequences = cut.view(available, _SEQUENCES_PER_BLOCK, self.sequence_length)[drawn]
        val, train = sequences[:val_blocks].flatten(0, 1), sequences[val_blocks:].flatten(0, 1)
        return train[: self.train_sequences], val[: self.val_sequences]


class _ByteSequences(Dataset[dict[str, Tensor]]):
    """Samples of a causal language model, of byte sequences uint8 ``(N, L)``."""

    def __init__(self, sequences: Tensor) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.sequences[index].long()
        return {
            "input_ids": tokens,
            "labels": tokens.clone(),
            "attention_mask": torch.ones_like(tokens),
            "num_bytes": torch.tensor(len(tokens) - 1),
        }


def _documentation(num_bytes: int, seed: int) -> bytes:
    from pydoc_data.topics import topics  # 0.5 MB of text

    return "\n\n".join(topics[topic] for topic in sorted(topics)).encode()


def _names(num_bytes: int, seed: int) -> bytes:
    named = ((code, unicodedata.name(chr(code), "")) for code in range(sys.maxunicode + 1))
    return "\n".join(
        name
        for code, name in named
        if name and not name.endswith(f"-{code:04X}") and not name.startswith("HANGUL SYLLABLE")
    ).encode()


def _source(num_bytes: int, seed: int) -> bytes:
    return _take((path.read_bytes() + b"\n" for path in _source_files(seed)), num_bytes)


def _disassembly(num_bytes: int, seed: int) -> bytes:
    listings = (_listing(code) for path in _source_files(seed) for code in _compiled(path))
    return _take(listings, num_bytes)


def _bytecode(num_bytes: int, seed: int) -> bytes:
    compiled = (code.co_code for path in _source_files(seed) for code in _compiled(path))
    return _take(compiled, num_bytes)


def _take(pieces: Iterator[bytes], num_bytes: int) -> bytes:
    """The first ``num_bytes`` bytes of ``pieces``, read no further than needed."""
    taken = bytearray()
    for piece in pieces:
        taken += piece
        if len(taken) >= num_bytes:
            break
    return bytes(taken[:num_bytes])


def _source_files(seed: int) -> list[Path]:
    """Source files of the standard library, in an order that depends on ``seed`` alone."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        # In place, so that os.walk does not enter them: site-packages can be large.
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        files += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)
        ]
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    return [files[i] for i in order.tolist()]


def _compiled(path: Path) -> Iterator[CodeType]:
    """All code in a source file, which is compiled but never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated syntax in someone else's file
        # optimize=0: the same bytes whether or not Python runs with -O
        module = compile(path.read_bytes(), path.name, "exec", dont_inherit=True, optimize=0)
    return _nested(module)


def _listing(code: CodeType) -> bytes:
    lines = [f"{step.opname} {_argument(step)}" for step in dis.get_instructions(code)]
    return "\n".join([code.co_name, *lines, "\n"]).encode(errors="backslashreplace")


def _argument(step: dis.Instruction) -> str:
    """The argument as dis shows it, but for what differs from run to run: addresses and sets."""
    if isinstance(step.argval, CodeType):
        return step.argval.co_name
    if isinstance(step.argval, frozenset):
        return f"frozenset({{{', '.join(sorted(map(repr, step.argval)))}}})"
    return step.argrepr


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


# Each reads at least as many bytes as it is asked for, as far as there are any.
_DOMAINS: dict[str, Callable[[int, int], bytes]] = {
    "documentation": _documentation,
    "source": _source,
    "names": _names,
    "disassembly": _disassembly,
    "bytecode": _bytecode,
}
