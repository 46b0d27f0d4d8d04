"""What of a model's weights is new since the last task: a head that has grown, a layer added."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recall_lightning.weights.naming import canonical_name, running_statistics
from recall_lightning.weights.sharding import sharded_like

Shapes = Mapping[str, Sequence[int]]
"""The shape of each of a model's weights, by canonical name."""


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every parameter, trained or frozen, and of running statistics.

    Example:
        >>> shapes_of(nn.Linear(3, 2))
        {'weight': [2, 3], 'bias': [2]}
    """
    named: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        named[canonical_name(name)] = parameter
    buffers = {canonical_name(name): buffer for name, buffer in module.named_buffers()}
    named |= {name: buffers[name] for name in running_statistics(module) & buffers.keys()}
    return {name: list(tensor.shape) for name, tensor in named.items()}


def new_since(earlier: Shapes | None, weights: Mapping[str, Tensor]) -> dict[str, list[int] | None]:
    """Name the weights of which something was not there before, with the shape of what was.

    Args:
        earlier: The shapes before; None if nothing is known of a time before.
        weights: The weights now, by canonical name.

    Returns:
        Name to the shape that it had; None for one that was not there, or had a shape that the new
        one does not contain, so that all of it is new.

    Example:
        >>> before = {"head.weight": [2, 4], "head.bias": [2]}
        >>> now = {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(2)}
        >>> new_since(before, now | {"gate": torch.ones(1)})
        {'head.weight': [2, 4], 'gate': None}
    """
    if earlier is None:
        return {}
    new: dict[str, list[int] | None] = {}
    for name, weight in weights.items():
        shape = earlier.get(name)
        if shape is None or not has_grown(shape, weight.shape):
            new[name] = None
        elif list(shape) != list(weight.shape):
            new[name] = list(shape)
    return new


def has_grown(shape: Sequence[int], now: Sequence[int]) -> bool:
    """Tell whether a tensor of a shape has its place in the corner of one of another.

    >>> has_grown([2, 4], [3, 4]), has_grown([2, 4], [2, 3]), has_grown([2], [2, 2])
    (True, False, False)
    """
    return len(shape) == len(now) and all(old <= new for old, new in zip(shape, now, strict=True))


def padded(known: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of a larger shape, zero behind what is known.

    >>> padded(torch.ones(1, 2), (2, 3)).tolist()
    [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    grown = known.new_zeros(shape)
    grown[tuple(map(slice, known.shape))] = known
    return grown


def is_new(weight: Tensor, earlier: Sequence[int] | None) -> Tensor:
    """Return which elements of a weight are new, booleans of its shape, sharded as it is.

    >>> is_new(torch.ones(2, 3), [1, 2]).tolist()
    [[False, False, True], [True, True, True]]
    """
    new = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    if earlier is not None:
        new[tuple(map(slice, earlier))] = False
    return sharded_like(new, weight)
