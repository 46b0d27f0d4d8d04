"""What is spread over processes: what each holds, and what it is together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value", bound=Tensor | float)


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Tell whether a value is a DTensor.

    Where nothing has imported their module, which takes as long as half of torch, there are none.

    >>> is_sharded(torch.zeros(3))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local(value: Value) -> Value:
    """Return this process's shard of a DTensor, and any other tensor or number as it is."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[return-value]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a DTensor, and any other tensor as it is; every process must call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, sharded as ``like`` is; nothing is sent.

    Args:
        tensor: The same on all processes, of the shape of ``like``, on any device.
        like: A DTensor, or any other tensor, which leaves ``tensor`` as it is.
    """
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(local(like).device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def write_into(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write into each weight the tensor of its name, of which a shard gets its own part.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> write_into({"weight": weight}, {"weight": torch.ones(2), "other": torch.ones(1)})
        >>> weight.data
        tensor([1., 1.])
    """
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(sharded_like(tensors[name], weight))


def total(value: float, like: Tensor) -> float:
    """Add up what each process found in its shard of ``like``; every process must call.

    >>> total(2.0, torch.zeros(3))
    2.0
    """
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    own = torch.tensor(value, dtype=torch.float64, device=local(like).device)
    return float(DTensor.from_local(own, like.device_mesh, parts).full_tensor())


@torch.no_grad()
def agree(tensor: Tensor) -> None:
    """Write the first process's values into a tensor of all; a DTensor's shards stay as they are.

    >>> agree(torch.zeros(3))
    """
    if torch.distributed.is_initialized() and not is_sharded(tensor):
        torch.distributed.broadcast(tensor, src=0)


def reshard(module: nn.Module) -> None:
    """Free what FSDP2 leaves gathered after a forward, so that parameters are shards again.

    A model whose root was run without a backward is left so.
    """
    if not torch.distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def gathered(state: Any, keep: bool) -> Any:
    """Replace every DTensor in nested dicts and lists by all of it, on the CPU, one by one.

    Every process must call, and pass the same structure.

    Args:
        state: What a checkpoint is to hold.
        keep: Whether this process needs the result; else there is an empty tensor in its place.

    Example:
        >>> gathered({"weights": [torch.ones(1)], "step": 3}, keep=True)
        {'weights': [tensor([1.])], 'step': 3}
    """

    def gather(tensor: Tensor) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        full = tensor.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return _with_tensors(state, gather)


def of_all_processes(state: Any) -> list[Any]:
    """Return what each process has in its place, in order of rank; every process must call.

    Only the first process, which saves checkpoints, gets what the others have: those find their own
    in every place.

    Args:
        state: Of this process: nested dicts and lists of tensors and plain Python.

    Example:
        >>> of_all_processes({"samples": torch.ones(1)})
        [{'samples': tensor([1.])}]
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [state]
    own = _with_tensors(state, Tensor.cpu)
    states: list[Any] = [own] * torch.distributed.get_world_size()
    torch.distributed.gather_object(own, states if torch.distributed.get_rank() == 0 else None)
    return states


def of_this_process(states: Sequence[Any]) -> Any:
    """Return this process's part of :func:`of_all_processes`, or another's if there were fewer.

    >>> of_this_process([1, 2])
    1
    """
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return states[rank % len(states)]


def _with_tensors(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested dicts and lists with every tensor in them changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _with_tensors(value, change) for key, value in state.items()}
    return [_with_tensors(each, change) for each in state] if isinstance(state, list) else state
