"""In-place arithmetic on named weights: everything is checked before anything is written."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recall_lightning.merging.functional.sums import WeightedSums
from recall_lightning.weights.chunks import chunk_size
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.naming import memory_of
from recall_lightning.weights.sharding import is_sharded, local, total

Weights = float | Mapping[str, float | Tensor]


def lerp_(
    live: Mapping[str, Tensor],
    snapshot: Mapping[str, Tensor],
    weights: Weights,
    check_finite: bool = True,
) -> None:
    """Merge in place: live ← live + w · (snapshot − live), for every name in ``snapshot``.

    One pass over memory. float32 and float64 are computed in their own precision, half precisions
    in float32 and rounded once; weights that equal their copy stay equal bit for bit. Where
    ``snapshot`` lies on another device it is streamed in chunks, without waiting for each if it is
    pinned. Of a DTensor each process merges its local shard. Tied names are written once, integer
    and bool entries never, and a live weight without a copy is left alone.

    Args:
        live: Name to the tensor that is written.
        snapshot: Name to the tensor of the same shape, on any device.
        weights: The snapshot's weight in [0, 1]: one for all, or by name (a float, or a tensor that
            broadcasts to the weight's shape). Of tied names the first one's counts.
        check_finite: Whether to look for NaN and infinities first, which costs as long as merging.
            False where it is known.

    Raises:
        ValueError: If a name is unknown, a shape, kind of dtype or sharding differs, a weight is
            not in [0, 1], or a weight to be merged holds a NaN or an infinity. Nothing has been
            written then.

    Example:
        >>> live = {"w": torch.tensor([0.0, 4.0])}
        >>> lerp_(live, {"w": torch.tensor([4.0, 4.0])}, 0.25)
        >>> live["w"]
        tensor([1., 4.])
    """
    for name, copy in snapshot.items():
        if name not in live:
            raise ValueError(f"the snapshot's weight {name!r} needs a live weight of that name")
        check_alike(name, live[name], copy)
        low, high = _range_of_weight(name, weights, copy)
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(
                f"the merge weight of {name!r} must lie in [0, 1], not in [{low:g}, {high:g}]"
            )
    names = _averaged_once(live, snapshot)
    if check_finite:
        for name in names:
            _check_finite(f"the live weight {name!r}", live[name])
            _check_finite(f"the snapshot weight {name!r}", snapshot[name])
    _lerp_(live, snapshot, weights, names)


def lerp_unchecked_(
    live: Mapping[str, Tensor], snapshot: Mapping[str, Tensor], weights: Weights
) -> None:
    """Merge in place as :func:`lerp_` does, where all that it checks is known.

    Example:
        >>> live = {"w": torch.tensor([0.0, 4.0])}
        >>> lerp_unchecked_(live, {"w": torch.tensor([4.0, 4.0])}, 0.25)
        >>> live["w"]
        tensor([1., 4.])
    """
    _lerp_(live, snapshot, weights, _averaged_once(live, snapshot))


def _lerp_(
    live: Mapping[str, Tensor],
    snapshot: Mapping[str, Tensor],
    weights: Weights,
    names: Sequence[str],
) -> None:
    with torch.no_grad():
        for name in names:
            weight = _weight_of(name, weights)
            _lerp_one_(local(live[name]), local(snapshot[name]), local(weight))


def weighted_sum_(
    out: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Weights],
    check_finite: bool = True,
) -> None:
    """Write out ← Σᵢ wᵢ · modelᵢ for every name in ``out``, without stacking the models.

    Sums are accumulated in float64, in chunks, and rounded once to ``out``'s dtype (to nearest,
    ties to even), so bfloat16, float16 and float32 results are off by half a unit in the last place
    at most, the order of models does not matter, and models that are equal come back bit for bit
    where their weights sum to 1. ``out`` may be one of the models. Tied names are written once;
    integer and bool entries are not averaged but copied from the first model; of a DTensor each
    process sums its local shard. What exceeds ``out``'s dtype becomes infinite.

    Args:
        out: Name to the tensor that is written.
        models: Of each model, name to a tensor of the same shape, on any device.
        weights: Of each model, its weight: one for all names, or by name (a float, or a tensor that
            broadcasts to the weight's shape). Any finite numbers.
        check_finite: Whether to look for NaN and infinities first.

    Raises:
        ValueError: If models and weights differ in number, a model lacks a name, a shape, kind of
            dtype or sharding differs, or a weight or a model's entry is not finite. Nothing has
            been written then.

    Example:
        >>> out = {"w": torch.zeros(2)}
        >>> first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}
        >>> weighted_sum_(out, [first, second], [0.5, 0.5])
        >>> out["w"]
        tensor([2., 3.])
    """
    if not models or len(models) != len(weights):
        raise ValueError(f"{len(models)} models need as many weights, not {len(weights)}")
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        for name, tensor in out.items():
            if name not in model:
                raise ValueError(f"model {i} lacks the weight {name!r}, which all models must have")
            check_alike(name, tensor, model[name])
            low, high = _range_of_weight(name, weight, tensor)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"model {i}'s merge weight of {name!r} must be finite")
            if check_finite:
                _check_finite(f"model {i}'s weight {name!r}", model[name])
    with torch.no_grad():
        for name, tensor in out.items():
            if not tensor.is_floating_point():
                tensor.copy_(models[0][name])
        for kind, names in _by_kind(out, _averaged_once(out, out)).items():
            sums = WeightedSums(*kind, most=max(local(out[name]).numel() for name in names))
            for name in names:
                own = [local(_weight_of(name, weight)) for weight in weights]
                _sum_one_(local(out[name]), [local(m[name]) for m in models], own, sums)


def squared_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None, names: Sequence[str]
) -> float:
    """Return Σ ‖first − second‖² over the weights ``names``; of ``first`` alone if None.

    Computed in float32 chunks. A NaN or an infinity anywhere makes it so. Of DTensors it is that of
    all processes, which must all call.

    Example:
        >>> squared_distance({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])}, "w")
        1.0
    """
    whole, sharded, like = 0.0, 0.0, None
    for name in names:
        found = 0.0
        tensor = local(first[name]).detach().reshape(-1)
        other = None if second is None else local(second[name]).detach().reshape(-1)
        size = chunk_size(tensor.device)
        buffer = tensor.new_empty(min(size, tensor.numel()), dtype=torch.float32)
        for start in range(0, tensor.numel(), size):
            part = tensor[start : start + size]
            moved = buffer[: len(part)].copy_(part)
            if other is not None:
                moved -= other[start : start + size].to(tensor.device)
            found += float(torch.dot(moved, moved))
        if is_sharded(first[name]):
            sharded, like = sharded + found, first[name]
        else:
            whole += found
    return whole if like is None else whole + total(sharded, like)


def _lerp_one_(live: Tensor, copy: Tensor, weight: float | Tensor) -> None:
    if live.device == copy.device and live.dtype == copy.dtype and not isinstance(weight, Tensor):
        live.lerp_(copy, weight)  # computes half precisions in float32
        return
    compute = torch.promote_types(torch.promote_types(live.dtype, copy.dtype), torch.float32)
    if isinstance(weight, Tensor):
        weight = weight.to(live.device, compute).expand(live.shape)
    if not live.is_contiguous():  # flattening would copy, and a write be lost
        merged = live.to(compute).lerp_(copy.to(live.device, compute), weight)
        live.copy_(merged)
        return
    flat, other = live.view(-1), copy.reshape(-1)
    size = chunk_size(live.device)
    for start in range(0, flat.numel(), size):
        part = slice(start, start + size)
        arrived = other[part].to(live.device, non_blocking=True).to(compute)
        factor = weight.reshape(-1)[part] if isinstance(weight, Tensor) else weight
        flat[part] = flat[part].to(compute).lerp_(arrived, factor)


def _sum_one_(
    out: Tensor, tensors: Sequence[Tensor], weights: Sequence[float | Tensor], sums: WeightedSums
) -> None:
    # flattened chunks of what is not contiguous would not be views
    flat = out.view(-1) if out.is_contiguous() else torch.empty_like(out.reshape(-1))
    done = 0
    for chunk in sums.chunks(tensors, weights):
        flat[done : done + len(chunk)] = chunk
        done += len(chunk)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def _by_kind(
    tensors: Mapping[str, Tensor], names: Sequence[str]
) -> dict[tuple[torch.dtype, torch.device], list[str]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name in names:
        kinds.setdefault((tensors[name].dtype, tensors[name].device), []).append(name)
    return kinds


def check_alike(name: str, tensor: Tensor, other: Tensor) -> None:
    """Check that a weight can be merged with its copy.

    Raises:
        ValueError: If shapes or shardings differ, or only one of the two holds floating-point
            numbers.
    """
    if tensor.shape != other.shape:
        raise ValueError(
            f"the weight {name!r} has the shape {tuple(tensor.shape)}, which its copy needs, too, "
            f"and not {tuple(other.shape)}"
        )
    if tensor.is_floating_point() != other.is_floating_point():
        raise ValueError(
            f"the weight {name!r} is {tensor.dtype} and its copy {other.dtype}: cast one"
        )
    sharding = [
        (getattr(t, "device_mesh", None), getattr(t, "placements", ())) for t in (tensor, other)
    ]
    if sharding[0] != sharding[1]:
        raise ValueError(
            f"the weight {name!r} is sharded as {sharding[0][1]}, as its copy must be, and not as "
            f"{sharding[1][1]}"
        )


def _averaged_once(written: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> list[str]:
    """Return the floating-point names, of those that share their memory only the first."""
    seen: set[object] = set()
    averaged = []
    for name in names:
        memory = memory_of(written[name])
        if written[name].is_floating_point() and memory not in seen:
            seen.add(memory)
            averaged.append(name)
    return averaged


def _weight_of(name: str, weights: Weights) -> float | Tensor:
    if not isinstance(weights, Mapping):
        return weights
    if name not in weights:
        raise ValueError(f"the weight {name!r} needs a merge weight")
    return weights[name]


def _range_of_weight(name: str, weights: Weights, merged: Tensor) -> tuple[float, float]:
    weight = _weight_of(name, weights)
    if not isinstance(weight, Tensor):
        return weight, weight
    check_broadcasts(name, weight, merged)
    return range_of(weight)


def check_broadcasts(name: str, weight: Tensor, merged: Tensor) -> None:
    """Check that a merge weight an element fits what it is for.

    Raises:
        ValueError: If it does not broadcast to its shape.
    """
    sizes = zip(reversed(weight.shape), reversed(merged.shape), strict=False)
    if weight.dim() > merged.dim() or any(size not in (1, own) for size, own in sizes):
        raise ValueError(
            f"the merge weight of {name!r} has the shape {tuple(weight.shape)}, which must "
            f"broadcast to the weight's {tuple(merged.shape)}"
        )


def range_of(tensor: Tensor) -> tuple[float, float]:
    """Return the least and the largest value, NaN if one is, in one pass; of a DTensor its shard's.

    >>> range_of(torch.tensor([0.5, 0.25]))
    (0.25, 0.5)
    """
    own = local(tensor)
    if not own.numel():
        return 0.0, 0.0
    low, high = own.aminmax()
    return float(low), float(high)


def _check_finite(what: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all_finite(tensor):
        raise ValueError(f"{what} holds NaN or infinite values, and must be finite")
