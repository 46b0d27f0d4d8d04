"""Parameters that running a model writes: in ``train`` and ``eval``, or in a forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from recall_lightning.weights.naming import canonical_name
from recall_lightning.weights.sharding import is_sharded

_SAMPLE = 64  # values of each parameter
_WRITTEN: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""Modules that have been measured, to names of parameters that this was found to write."""


@contextmanager
def guarded_parameters(module: nn.Module) -> Iterator[None]:
    """Have parameters that running a module may write hold copies inside the ``with`` block.

    These are those of modules that do something of their own in ``train``, with their children's,
    of embeddings with a ``max_norm``, and those that were found to be written before. Which
    parameters are trainable is put back, too.

    Warns:
        UserWarning: Once, if other parameters were written.
    """
    parameters = {canonical_name(n): p for n, p in module.named_parameters() if not is_lazy(p)}
    risky = _at_risk(module) | {
        id(parameters[n]) for n in _WRITTEN.get(module, ()) if n in parameters
    }
    held = [(p, p.data) for p in parameters.values() if id(p) in risky and not is_sharded(p)]
    others = {n: p for n, p in parameters.items() if id(p) not in risky}
    before = _sample(list(others.values())) if module not in _WRITTEN else None
    trainable = [(p, p.requires_grad) for p in parameters.values()]
    try:
        for parameter, data in held:
            parameter.data = data.clone()
        yield
    finally:
        for parameter, data in held:
            parameter.data = data
        for parameter, required in trainable:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
    if before is not None:
        _WRITTEN[module] = _changed(others, before)
        if _WRITTEN[module]:
            names = sorted(_WRITTEN[module])
            warnings.warn(
                f"running {type(module).__name__} in evaluation mode wrote its parameters "
                f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}: from now on "
                "they are put back after each measurement",
                stacklevel=2,
            )


@contextmanager
def no_gradients_left(module: nn.Module) -> Iterator[None]:
    """Drop gradients that a backward inside the ``with`` block accumulates in parameters.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with no_gradients_left(layer):
        ...     layer(torch.ones(2)).sum().backward()
        >>> layer.weight.grad is None
        True
    """
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _at_risk(module: nn.Module) -> set[int]:
    """Identify parameters of modules that may write them."""
    found: set[int] = set()
    for child in module.modules():
        if type(child).train is not nn.Module.train or type(child).eval is not nn.Module.eval:
            for owner in (child, *child.children()):
                found |= {id(p) for p in owner.parameters(recurse=False)}
        elif getattr(child, "max_norm", None) is not None:
            found |= {id(p) for p in child.parameters(recurse=False)}
    return found


def _sample(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [_some_bytes(parameter).clone() for parameter in parameters]


def _some_bytes(parameter: Tensor) -> Tensor:
    """Return a few of a parameter's values as they are stored, of a DTensor none."""
    if is_sharded(parameter) or parameter.device.type == "meta" or not parameter.numel():
        return torch.empty(0)
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].contiguous().view(torch.uint8)


def _changed(parameters: Mapping[str, Tensor], before: Sequence[Tensor]) -> set[str]:
    pairs = zip(parameters.items(), before, strict=True)
    return {name for (name, p), was in pairs if not torch.equal(_some_bytes(p), was)}
