"""Pictures with labels, out of packages of Debian and PyPI: Fashion-MNIST, MNIST, digits."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.real.packages import file_of

_UNSIGNED_BYTES = 8  # the third byte of an idx file's magic number

Pictures = tuple[Tensor, Tensor]
"""Grey pictures, uint8 ``(N, height, width)``, and their labels, int64 ``(N,)``."""


def fashion_mnist(split: str) -> Pictures:
    """Clothes of ten kinds, 28 by 28 (Xiao et al. 2017, arXiv 1708.07747).

    Args:
        split: ``"train"``, 60,000 pictures, or ``"test"``, 10,000.
    """
    images = read_idx(file_of(f"fashion_{split}_images"))
    return images, read_idx(file_of(f"fashion_{split}_labels")).long()


def read_idx(file: Path) -> Tensor:
    """Read a gzipped idx file of unsigned bytes, the format of MNIST.

    It holds two zeros, the type, the number of axes, a big-endian int32 an axis, and the values.

    Raises:
        ValueError: If it is something else, or has too many or too few values.
    """
    content = gzip.decompress(file.read_bytes())
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ValueError(f"{file} is no idx file of unsigned bytes: it begins {content[:4]!r}")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    return torch.from_numpy(values.reshape(shape).copy())


def mnist() -> Pictures:
    """Handwritten digits, 28 by 28: 500 of each, a part of MNIST (LeCun et al. 1998)."""
    return read_table(file_of("mnist"))


def read_table(file: Path) -> Pictures:
    """Read a gzipped table of square pictures, a row each: its pixels, row by row, and its label.

    Raises:
        ValueError: If the pixels of a row make no square.
    """
    table = np.loadtxt(file, np.float32, delimiter=",", ndmin=2)
    side = round((table.shape[1] - 1) ** 0.5)
    pixels = torch.from_numpy(table[:, :-1]).to(torch.uint8).view(len(table), side, side)
    return pixels, torch.from_numpy(table[:, -1]).long()


def digits() -> Pictures:
    """Handwritten digits, 8 by 8, of scikit-learn: 1797 (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits  # heavy

    pixels, labels = load_digits(return_X_y=True)
    pictures = torch.from_numpy(pixels * 255 / 16).round().to(torch.uint8).view(-1, 8, 8)
    return pictures, torch.from_numpy(labels).long()


def split(pictures: Pictures, val: int, seed: int) -> tuple[Pictures, Pictures]:
    """Shuffle pictures, and part them into those to train on and ``val`` held-out ones."""
    images, labels = pictures
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[val:], order[:val]
    return (images[train], labels[train]), (images[held_out], labels[held_out])


def first(pictures: Pictures, count: int) -> Pictures:
    """Return the first ``count`` of shuffled pictures."""
    images, labels = pictures
    return images[:count], labels[:count]
