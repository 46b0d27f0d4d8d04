"""Logits and nats of the tokens that are predicted, and of no others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from recall_lightning.measuring.forward import is_compiled_in_place, uncompiled

_ENTRIES = 2**24
"""How many logits are held in float32 at a time: 64 MiB."""

_TAKES_ANY_TOKENS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Heads that were tried, and whether their model's logits of some tokens are those of all."""


def predicted(labels: Tensor) -> Tensor:
    """Tell at which tokens the next one is to be predicted.

    Args:
        labels: int64 ``(B, L)``, not shifted; -100 is not predicted.

    Returns:
        bool ``(B, L)``.

    Example:
        >>> predicted(torch.tensor([[-100, 5, -100]]))
        tensor([[ True, False, False]])
    """
    return functional.pad(labels[:, 1:] != -100, (0, 1))


def predicted_logits(
    model: Callable[..., Any], inputs: Mapping[str, Any], labels: Tensor, head: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Run a causal model, and compute logits of the tokens before labels alone.

    A vocabulary of 152 thousand makes logits of all tokens of 32 rows of 1024 a tensor of 9.3 GiB
    in half precision, and answers of 4 tokens one of 37 MiB. So the head is given the hidden states
    of these tokens alone. What a model does to its logits behind the head (scales, caps) stays its
    own. The first time, one row is computed both ways; where they differ, or there is no head, the
    logits of all tokens are computed, one row at a time.

    Args:
        model: Returns ``logits`` ``(B, L, vocabulary)``.
        inputs: What it takes, by name.
        labels: int64 ``(B, L)``, not shifted; -100 is not predicted.
        head: The part of the model that makes logits of hidden states ``(B, L, width)``.

    Returns:
        Logits ``(N, vocabulary)`` in the model's dtype, row after row, and targets, int64 ``(N,)``.

    Example:
        >>> model, labels = lambda input_ids: input_ids[..., None], torch.tensor([[5, 6, -100]])
        >>> class Output:
        ...     def __init__(self, input_ids):
        ...         self.logits = input_ids[..., None].float()
        >>> predicted_logits(Output, {"input_ids": torch.tensor([[5, 6, 7]])}, labels, None)
        (tensor([[5.]]), tensor([6]))
    """
    places = predicted(labels)
    if head is not None and head not in _TAKES_ANY_TOKENS and places.any():
        _try(model, inputs, places, head)
    if head is not None and _TAKES_ANY_TOKENS.get(head, False):
        logits = _of_some(model, inputs, places, head)
        assert logits is not None  # it did so when it was tried
    else:
        rows = range(len(labels))
        logits = torch.cat([_of_all(model, _row(inputs, i), places[i : i + 1]) for i in rows])
    return logits, labels[:, 1:][places[:, :-1]]


def _try(
    model: Callable[..., Any], inputs: Mapping[str, Any], places: Tensor, head: nn.Module
) -> None:
    row = int(places.any(dim=1).nonzero()[0])
    inputs, places = _row(inputs, row), places[row : row + 1]
    whole, some = _of_all(model, inputs, places), _of_some(model, inputs, places, head)
    if not whole.isfinite().all():
        return  # nothing is seen of logits that are no numbers
    alike = False
    if some is not None and some.shape == whole.shape:
        far = 8 * torch.finfo(whole.dtype).eps * whole.abs().max()
        alike = bool((some - whole).abs().max() <= far)
    _TAKES_ANY_TOKENS[head] = alike


def _row(inputs: Mapping[str, Any], row: int) -> dict[str, Any]:
    return {k: v[row : row + 1] if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _of_all(model: Callable[..., Any], inputs: Mapping[str, Any], places: Tensor) -> Tensor:
    logits: Tensor = model(**inputs).logits
    return logits[places]


def _of_some(
    model: Callable[..., Any], inputs: Mapping[str, Any], places: Tensor, head: nn.Module
) -> Tensor | None:
    """Return logits ``(N, vocabulary)``, or None where the head does not make them."""
    with _given(head, places), _uncompiled(model):
        logits: Tensor = model(**inputs).logits
    return logits[0] if logits.shape[:2] == (1, int(places.sum())) else None


@contextmanager
def _given(head: nn.Module, places: Tensor) -> Iterator[None]:
    """Give a head the hidden states of some places, as if they were one row."""

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if args and args[0].shape[:2] == places.shape:
            return (args[0][places.to(args[0].device)][None], *args[1:])
        return args

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _uncompiled(model: Any) -> Iterator[None]:
    """Run what was compiled as it is written: compiled code would not call hooks."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    compiled = "torch._dynamo" in sys.modules and any(
        is_compiled_in_place(module) or uncompiled(module) is not module for module in modules
    )
    with ExitStack() as stack:
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of every target, a part of them at a time.

    Only a part of the logits is ever held in float32: in backward it is computed once more.

    Args:
        logits: ``(N, vocabulary)``, of any dtype.
        targets: int64 ``(N,)``.

    Returns:
        float32 ``(N,)``.

    Example:
        >>> nats(torch.zeros(2, 4), torch.tensor([1, 2]))  # ln 4
        tensor([1.3863, 1.3863])
    """
    rows = max(1, _ENTRIES // logits.shape[-1])
    if len(targets) <= rows:
        return _nats(logits, targets)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.cat([_nats(*part) for part in parts])
    again = partial(checkpoint, _nats, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(*part) for part in parts])


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="none")
