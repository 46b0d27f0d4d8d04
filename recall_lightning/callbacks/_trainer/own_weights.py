"""Optimizers that keep weights of their own, which overwrite what is written to the model's."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from recall_lightning.callbacks._trainer.optimizer_state import forget
from recall_lightning.measuring.isolation import isolated_rng
from recall_lightning.weights.naming import memory_of
from recall_lightning.weights.sharding import is_sharded

_STEPS = 24  # some copies are brought back every few steps only
_STEPS_OF_A_SMALL_ONE = 128
_LEFT = 0.75  # of a change to the weights, or it is taken to be undone
_MOST_BYTES = 2**30  # of an optimizer that is copied to be tried
_SAMPLE = 4096  # values of a tensor that are compared with a weight's


def refuse_own_weights(
    optimizers: Sequence[Optimizer], writer: object, forgets: bool = False
) -> None:
    """Refuse optimizers that undo what is written to weights, before any of them has stepped.

    One of the same class is tried on a small weight: that is moved between two steps, and what is
    left of the move is looked at some steps later. Those of torch keep no weights.

    Args:
        optimizers: The Trainer's.
        writer: Who writes to the weights; its class is named, or it is a name.
        forgets: Whether the optimizer's state of written weights is forgotten.

    Raises:
        MisconfigurationException: Naming the optimizer.
    """
    for optimizer in optimizers:
        if _is_torchs(optimizer):
            continue
        left = _left_of_its_kind(optimizer, forgets)
        if left is not None and left < _LEFT:
            helps = not forgets and (_left_of_its_kind(optimizer, True) or 0.0) >= _LEFT
            _refuse(optimizer, writer, helps, f"of a change to a weight {left:.0%} was left")


def refuse_copies_of_weights(
    optimizers: Sequence[Optimizer], weights: Mapping[str, Tensor], writer: object, forgets: bool
) -> None:
    """Refuse optimizers that hold copies of weights, unless the weights count and not the copies.

    A copy is a tensor of a weight's shape that lies near it. Some keep one without overwriting the
    weight, such as averages for later; so one that has copies is copied itself, and tried.

    Args:
        optimizers: The Trainer's, after a step.
        weights: The model's by name.
        writer: Who writes to the weights; its class is named, or it is a name.
        forgets: Whether the optimizer's state of written weights is forgotten.

    Raises:
        MisconfigurationException: Naming the optimizer and a copy.
    """
    for optimizer in optimizers:
        if _is_torchs(optimizer):
            continue
        found = _copies(optimizer, weights)
        if found is None:
            continue
        left = _left_of_itself(optimizer, forgets)
        if left is None:
            _refuse(optimizer, writer, False, f"{found} is near, and trying it failed")
        elif left < _LEFT:
            helps = not forgets and (_left_of_itself(optimizer, True) or 0.0) >= _LEFT
            _refuse(optimizer, writer, helps, f"{found}; of a change {left:.0%} was left")


def _refuse(optimizer: Optimizer, writer: object, resetting_helps: bool, seen: str) -> None:
    kind, name = type(optimizer), writer if isinstance(writer, str) else type(writer).__name__
    reset = ", or optimizer_state='reset', with which it starts anew from them"
    raise MisconfigurationException(
        f"{name} writes to the weights of the model, and {kind.__module__}."
        f"{kind.__qualname__} keeps weights of its own that undo this in its next steps ({seen}): "
        "use an optimizer that keeps none, such as torch.optim.AdamW"
        f"{reset if resetting_helps else ''}"
    )


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.partition(".")[0] == "torch" and not _inner(optimizer)


def _inner(optimizer: Optimizer) -> list[Optimizer]:
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]


def _left_of_its_kind(optimizer: Optimizer, forgets: bool) -> float | None:
    """Return what is left of a change to a weight under a new optimizer of the class.

    None where it cannot be constructed from what this one tells of its arguments.
    """
    like = next((p for group in optimizer.param_groups for p in group["params"]), None)
    if like is None or not like.is_floating_point():
        return None
    known = {**optimizer.param_groups[0], **optimizer.defaults}
    wanted = inspect.signature(type(optimizer).__init__).parameters
    arguments = {n: v for n, v in known.items() if n in wanted and n != "params"}
    start = torch.linspace(-1, 1, 64, dtype=torch.float32).reshape(8, 8)
    device = like.device

    def build() -> Optimizer:
        weight = nn.Parameter(start.to(device=device, dtype=like.dtype, copy=True))
        return type(optimizer)([weight], **copy.deepcopy(arguments))

    return _left(build, forgets, _STEPS_OF_A_SMALL_ONE)


def _left_of_itself(optimizer: Optimizer, forgets: bool) -> float | None:
    """Return what is left of a change to the weights under a copy of an optimizer.

    None where it is too large to be copied, or cannot be.
    """
    tensors = [tensor for _, tensor in _tensors(optimizer)]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _MOST_BYTES:
        return None
    if any(map(is_sharded, tensors)):
        return None
    # schedulers put a step of the original's there, hooks lead to half the program
    kept = {n: v for n, v in vars(optimizer).items() if n != "step" and "_hooks" not in n}

    def build() -> Optimizer:
        twin = type(optimizer).__new__(type(optimizer))
        state = copy.deepcopy(kept)
        if isinstance(twin, Optimizer):
            Optimizer.__setstate__(twin, state)
        else:
            vars(twin).update(state)
        return twin

    return _left(build, forgets, _STEPS)


def _left(build: Any, forgets: bool, steps: int) -> float | None:
    """Step two optimizers alike, one of them after a change to its weights; compare the weights."""
    with warnings.catch_warnings(), isolated_rng():
        warnings.simplefilter("ignore")
        try:
            one, other = build(), build()
            return _least_left(one, other, forgets, steps)
        except Exception:
            return None  # it wants other arguments, or steps in a way of its own


def _least_left(one: Optimizer, other: Optimizer, forgets: bool, steps: int) -> float:
    pairs = list(zip(_parameters(one), _parameters(other), strict=True))
    for optimizer in (one, other):
        train = getattr(optimizer, "train", None)
        if callable(train):  # schedule-free ones wait for it
            train()
        for group in optimizer.param_groups:  # a decay is no undoing
            for name, value in (("lr", 1e-4), ("weight_decay", 0.0)):
                if name in group and not isinstance(group[name], Tensor):
                    group[name] = value
    generator = torch.Generator().manual_seed(0)
    moves: list[Tensor] = []
    least = 1.0
    for step in range(steps + 2):
        if step == 2:
            moves = [_drawn(p, generator) * float(p.detach().float().std(correction=0) or 1)
                     for p, _ in pairs]  # fmt: skip
            with torch.no_grad():
                for (_, parameter), move in zip(pairs, moves, strict=True):
                    parameter.add_(move.to(parameter))
            if forgets:
                forget([one], [p for p, _ in pairs])
                forget([other], [p for _, p in pairs])
        gradients = [1e-2 * _drawn(p, generator) for p, _ in pairs]
        _step(one, [p for p, _ in pairs], gradients)
        _step(other, [p for _, p in pairs], gradients)
        if moves:
            triples = zip(pairs, moves, strict=True)
            dots = sum(float(((q.detach().float() - p.detach().float()) * m.to(p.device)).sum())
                       for (p, q), m in triples)  # fmt: skip
            least = min(least, dots / sum(float(move.square().sum()) for move in moves))
    return max(least, 0.0)


def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _step(optimizer: Any, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    def closure() -> Tensor:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter)
        return torch.zeros(())

    closure()
    step = type(optimizer).step
    takes_closure = len(inspect.signature(step).parameters) > 1
    step(optimizer, closure) if takes_closure else step(optimizer)


def _copies(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> str | None:
    """Name where an optimizer holds copies of at least half of the weights it changes."""
    owned = {id(parameter) for parameter in _parameters(optimizer)}
    own = [w for w in weights.values() if id(w) in owned and w.numel() > 1 and not is_sharded(w)]
    if not own:  # it steps copies, and someone writes these into the model
        own = [w for w in weights.values() if w.numel() > 1 and not is_sharded(w)]
    taken = {memory_of(weight) for weight in weights.values()}
    held: dict[torch.Size, list[tuple[str, Tensor]]] = {}
    for name, tensor in _tensors(optimizer):
        if tensor.is_floating_point() and memory_of(tensor) not in taken:
            held.setdefault(tensor.shape, []).append((name, tensor))
    found, near, everything = "", 0, 0
    for weight in own:
        value = _sampled(weight)
        size = float(value.norm())
        if not size > 0:
            continue
        everything += weight.numel()
        for name, tensor in held.get(weight.shape, []):
            if float((_sampled(tensor) - value).norm()) < 0.5 * size:
                found, near = name, near + weight.numel()
                break
    return found if near > 0.5 * everything else None


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].double().cpu()


def _tensors(optimizer: object) -> Iterator[tuple[str, Tensor]]:
    """Walk the tensors that an optimizer holds, with how they are called there."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", optimizer)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            waiting += [(key if isinstance(key, str) else name, v) for key, v in value.items()]
            waiting += [(name, key) for key in value if isinstance(key, Tensor)]
        elif isinstance(value, (list, tuple)):
            waiting += [(name, entry) for entry in value]
        elif isinstance(value, Optimizer) or value is optimizer:
            waiting += [(n, v) for n, v in vars(value).items() if "_hooks" not in n]
