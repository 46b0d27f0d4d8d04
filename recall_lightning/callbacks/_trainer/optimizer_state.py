"""What optimizers remember of parameters."""

from collections.abc import Iterable

import torch
from torch.optim import Optimizer


def forget(optimizers: Iterable[Optimizer], parameters: Iterable[torch.Tensor]) -> None:
    """Have optimizers start anew with some of their parameters.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> forget([optimizer], [weight])
        >>> len(optimizer.state)
        0
    """
    forgotten = set(map(id, parameters))
    for optimizer in optimizers:
        for parameter in [p for p in optimizer.state if id(p) in forgotten]:
            del optimizer.state[parameter]
