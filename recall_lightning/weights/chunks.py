"""How much of a tensor is computed or written at a time."""

import torch


def chunk_size(device: torch.device) -> int:
    """Return how many elements to compute at a time.

    On a CPU buffers stay in the cache, elsewhere launches stay few.

    Example:
        >>> chunk_size(torch.device("cpu"))
        262144
    """
    return 1 << 18 if device.type == "cpu" else 1 << 22
