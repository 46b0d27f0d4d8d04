"""What optimizers remember of parameters."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from recall_lightning.weights.sharding import sharded_like

StateOfParameters = list[list[dict[str, Any]]]
"""Of each optimizer what it remembers of each of its parameters, in their order."""


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


def copied_state(optimizers: Iterable[Optimizer]) -> StateOfParameters:
    """Copy what optimizers remember of their parameters; of Adam that is twice the weights.

    Args:
        optimizers: Which.
    """
    return [
        [
            {name: _copied(value) for name, value in one.state.get(parameter, {}).items()}
            for parameter in _parameters(one)
        ]
        for one in optimizers
    ]


def put_back_state(optimizers: Sequence[Optimizer], states: StateOfParameters) -> None:
    """Have optimizers remember of their parameters what :func:`copied_state` returned.

    Learning rates and whatever else counts for a whole group of parameters goes on. What has come
    since keeps its state.

    Args:
        optimizers: Those that the copy is of.
        states: The copy, whole or sharded; it is left as it is.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> before = copied_state([optimizer])
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> put_back_state([optimizer], before)
        >>> len(optimizer.state)
        0
    """
    for optimizer, own in zip(optimizers, states, strict=False):
        for parameter, state in zip(_parameters(optimizer), own, strict=False):
            now = optimizer.state.pop(parameter, {})
            if state:
                optimizer.state[parameter] = {
                    name: _placed(value, now.get(name), parameter) for name, value in state.items()
                }


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _placed(value: Any, now: Any, parameter: Tensor) -> Any:
    """Copy a value to where it belongs: a count of steps may be on the CPU."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if value.shape == parameter.shape:
        return sharded_like(value, parameter).to(parameter.device, copy=True)
    return value.to(now.device if isinstance(now, Tensor) else value.device, copy=True)
