"""Where small matrices are decomposed: on the CPU, as a GPU takes milliseconds to begin each."""

import torch
from torch import Tensor

_SMALL = 256  # rows, below which a CPU is done before a GPU has begun


def quickest_device(matrix: Tensor) -> torch.device:
    """Return where a decomposition of a square matrix takes the least time.

    Example:
        >>> quickest_device(torch.eye(3))
        device(type='cpu')
    """
    return torch.device("cpu") if len(matrix) <= _SMALL else matrix.device


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n), ascending, and in columns eigenvectors of a symmetric matrix (n, n).

    Both are on the matrix's device, wherever they were found.

    Example:
        >>> values, vectors = eigh(torch.diag(torch.tensor([2.0, 1.0])))
        >>> values, vectors.abs()
        (tensor([1., 2.]), tensor([[0., 1.],
                [1., 0.]]))
    """
    values, vectors = torch.linalg.eigh(matrix.to(quickest_device(matrix)))
    return values.to(matrix.device), vectors.to(matrix.device)
