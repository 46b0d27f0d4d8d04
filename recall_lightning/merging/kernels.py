"""In-place arithmetic on named weights: everything is checked before anything is written."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from recall_lightning.snapshots import all_finite

Weights = float | Mapping[str, float | Tensor]

# elements computed at a time: buffers stay in a CPU's cache, launches stay few on a GPU
_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 22
_ROW = 64  # elements that are computed anew together where a quick result is in doubt
# explicit bits of the mantissa and the least normal exponent
_HALF_PRECISIONS = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}


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
            raise ValueError(f"the snapshot's weight {name!r} has no live weight of that name")
        _check_alike(name, live[name], copy)
        low, high = _range_of_weight(name, weights)
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(
                f"the merge weight of {name!r} must lie in [0, 1], not in [{low:g}, {high:g}]"
            )
    names = _averaged_once(live, snapshot)
    if check_finite:
        for name in names:
            _check_finite(f"the live weight {name!r}", live[name])
            _check_finite(f"the snapshot weight {name!r}", snapshot[name])
    with torch.no_grad():
        for name in names:
            weight = _weight_of(name, weights)
            _lerp_one_(_local(live[name]), _local(snapshot[name]), _local(weight))


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
    process sums its local shard.

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
        raise ValueError(f"{len(models)} models cannot be summed with {len(weights)} weights")
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        for name, tensor in out.items():
            if name not in model:
                raise ValueError(f"model {i} has no weight {name!r}")
            _check_alike(name, tensor, model[name])
            low, high = _range_of_weight(name, weight)
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"model {i}'s merge weight of {name!r} is not finite")
            if check_finite:
                _check_finite(f"model {i}'s weight {name!r}", model[name])
    averaged = _averaged_once(out, out)
    with torch.no_grad():
        for name, tensor in out.items():
            if not tensor.is_floating_point():
                tensor.copy_(models[0][name])
        for name in averaged:
            target = _local(out[name])
            own = [_local(_weight_of(name, weight)) for weight in weights]
            parts = [_local(model[name]) for model in models]
            if not target.is_contiguous():  # its flattened chunks would not be views
                dense = torch.empty_like(target, memory_format=torch.contiguous_format)
                _sum_one_(dense, parts, own)
                target.copy_(dense)
            else:
                _sum_one_(target, parts, own)


def weighted_sum_chunks(
    models: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Iterator[Tensor]:
    """Yield Σᵢ wᵢ · modelᵢ as flat chunks in order, rounded once to ``dtype``.

    The arithmetic of :func:`weighted_sum_` for what is written elsewhere than to a tensor. Nothing
    is checked. A chunk is valid until the one after the next is asked for, so that it can be
    written while the next is computed.

    Args:
        models: Tensors of one shape, on any devices.
        weights: A finite weight, or a tensor that broadcasts to the shape, for each.
        dtype: The chunks' dtype, floating point.
        device: Where it is computed, and the chunks lie; None is the first model's.

    Example:
        >>> chunks = weighted_sum_chunks([torch.ones(3), torch.zeros(3)], [0.5, 0.5], torch.float16)
        >>> [chunk.tolist() for chunk in chunks]
        [[0.5, 0.5, 0.5]]
    """
    shape, device = models[0].shape, device or models[0].device
    flat = [model.detach().reshape(-1) for model in models]
    factors = [w.expand(shape).reshape(-1) if isinstance(w, Tensor) else w for w in weights]
    count = flat[0].numel()
    size = min(_CHUNK.get(device.type, _CHUNK_ELSEWHERE), count)
    rounded = [torch.empty(size, dtype=dtype, device=device) for _ in range(2)]
    chunks = _ChunkSums(size, dtype, device)
    between = _place_between(flat, factors, dtype)
    for number, start in enumerate(range(0, count, max(size, 1))):
        part = slice(start, min(start + size, count))
        out = rounded[number % 2][: part.stop - part.start]
        terms = [
            (model[part].to(device), f[part].to(device) if isinstance(f, Tensor) else f)
            for model, f in zip(flat, factors, strict=True)
        ]
        if between is None or not chunks.lerp_(out, terms, between):
            between = None  # where much is in doubt, it is so everywhere
            chunks.sum_(out, terms)
        yield out


def squared_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor] | None, names: Sequence[str]
) -> float:
    """Return Σ ‖first − second‖² over the weights ``names``; of ``first`` alone if None.

    Computed in float32 chunks. A NaN or an infinity anywhere makes it so.

    Example:
        >>> squared_distance({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])}, "w")
        1.0
    """
    total = 0.0
    for name in names:
        tensor = _local(first[name]).detach().reshape(-1)
        other = None if second is None else _local(second[name]).detach().reshape(-1)
        size = _CHUNK.get(tensor.device.type, _CHUNK_ELSEWHERE)
        buffer = tensor.new_empty(min(size, tensor.numel()), dtype=torch.float32)
        for start in range(0, tensor.numel(), size):
            part = tensor[start : start + size]
            moved = buffer[: len(part)].copy_(part)
            if other is not None:
                moved -= other[start : start + size].to(tensor.device)
            total += float(torch.dot(moved, moved))
    return total


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
    size = _CHUNK.get(live.device.type, _CHUNK_ELSEWHERE)
    for start in range(0, flat.numel(), size):
        part = slice(start, start + size)
        arrived = other[part].to(live.device, non_blocking=True).to(compute)
        factor = weight.reshape(-1)[part] if isinstance(weight, Tensor) else weight
        flat[part] = flat[part].to(compute).lerp_(arrived, factor)


def _sum_one_(out: Tensor, models: Sequence[Tensor], weights: Sequence[float | Tensor]) -> None:
    flat, done = out.view(-1), 0
    for chunk in weighted_sum_chunks(models, weights, out.dtype, out.device):
        flat[done : done + len(chunk)] = chunk
        done += len(chunk)


def _place_between(
    models: Sequence[Tensor], weights: Sequence[float | Tensor], dtype: torch.dtype
) -> float | None:
    """Return w if the sum is first + w · (second − first) in half precision, else None."""
    if len(models) != 2 or {model.dtype for model in models} != {dtype}:
        return None
    first, second = weights
    if isinstance(first, Tensor) or isinstance(second, Tensor) or dtype not in _HALF_PRECISIONS:
        return None
    return second if 0 < second < 1 and abs(first + second - 1) < 1e-12 else None


class _ChunkSums:
    """Sums chunks of models, in memory that is taken once: fresh pages cost more than sums do."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._total = torch.empty(size, dtype=torch.float64, device=device)
        self._grid = torch.empty_like(self._total)
        self._above = torch.empty(size, dtype=dtype, device=device)

    def sum_(self, out: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]]) -> None:
        """Write the sum, accumulated in float64 and rounded once."""
        total = self._total[: len(out)]
        exact = torch.float64 not in (self._dtype, *(model.dtype for model, _ in terms))
        (_accumulate_ if exact else _accumulate_anchored_)(total, terms)
        if self._dtype in _HALF_PRECISIONS:
            _round_to_half_precision_(total, self._grid[: len(out)], self._dtype)
        out.copy_(total)

    def lerp_(
        self, out: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]], place: float
    ) -> bool:
        """Write the same sum of two for half precision, mostly by arithmetic in float32.

        Rounding is monotone: where weights a little below and above give one result, it is that of
        the exact sum. The margin exceeds float32's error, as two numbers of half precision that
        differ do so by a spacing of their grid at least. Rows with other elements are summed anew;
        with too many of them nothing is gained, and False is returned.
        """
        first, second = (model for model, _ in terms)
        margin = 2.0 ** -(22 - _HALF_PRECISIONS[self._dtype][0])
        above = self._above[: len(out)]
        torch.lerp(first, second, place - margin, out=out)
        torch.lerp(first, second, place + margin, out=above)
        whole = len(out) // _ROW * _ROW
        differing = above[:whole].view(torch.int16).bitwise_xor_(out[:whole].view(torch.int16))
        lanes = differing.view(torch.int32).view(-1, _ROW // 2)
        rows = (lanes.amax(dim=1) | lanes.amin(dim=1)).nonzero().flatten()
        if 4 * len(rows) > len(lanes):
            return False
        if len(rows):
            anew = above[: len(rows) * _ROW]
            self.sum_(anew, [(m[:whole].view(-1, _ROW)[rows].flatten(), w) for m, w in terms])
            out[:whole].view(-1, _ROW)[rows] = anew.view(-1, _ROW)
        if whole < len(out):
            self.sum_(out[whole:], [(model[whole:], weight) for model, weight in terms])
        return True


def _accumulate_(total: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]]) -> None:
    """Add up, models of equal weight first: the order in which they are given must not matter.

    Decimal weights make many sums fall next to the middle between two results, where float64's
    last bit decides.
    """
    groups: dict[float, list[Tensor]] = {}
    for model, weight in terms:
        if not isinstance(weight, Tensor):
            groups.setdefault(weight, []).append(model)
    for number, weight in enumerate(sorted(groups)):
        first, *others = groups[weight]
        if others:
            first = first.double()  # a copy: what float64 computes otherwise
            for model in others:
                first += model
        if number == 0:
            total.copy_(first).mul_(weight)
        else:
            total.add_(first, alpha=weight)
    if not groups:
        total.zero_()
    for model, weight in terms:
        if isinstance(weight, Tensor):
            total.addcmul_(model.double(), weight.double())


def _accumulate_anchored_(total: Tensor, terms: Sequence[tuple[Tensor, float | Tensor]]) -> None:
    """Add up differences from the first model: in float64 only that returns equal models."""
    anchor = terms[0][0].double()
    weights = [weight for _, weight in terms]
    if any(isinstance(weight, Tensor) for weight in weights):
        share = sum(weights)
    else:
        share = math.fsum(weights)
    torch.mul(anchor, share, out=total)
    for model, weight in terms[1:]:
        total.addcmul_(model.double() - anchor, torch.as_tensor(weight).to(total))


def _round_to_half_precision_(values: Tensor, grid: Tensor, dtype: torch.dtype) -> None:
    """Round float64 to the grid of ``dtype``, once: torch's cast rounds to float32 in between.

    Adding 1.5 · 2^52 spacings of the grid pushes all finer bits out of the mantissa.
    """
    mantissa, least = _HALF_PRECISIONS[dtype]
    powers = grid.view(torch.int64)
    torch.bitwise_and(values.view(torch.int64), 0x7FF0000000000000, out=powers)
    grid.clamp_(2.0**least, 2.0**128)  # an infinity or NaN must not become a grid
    values.add_(grid, alpha=1.5 * 2.0 ** (52 - mantissa))
    values.sub_(grid, alpha=1.5 * 2.0 ** (52 - mantissa))


def _check_alike(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"the weight {name!r} has the shape {tuple(tensor.shape)} and its copy "
            f"{tuple(other.shape)}"
        )
    if tensor.is_floating_point() != other.is_floating_point():
        raise ValueError(f"the weight {name!r} is {tensor.dtype} and its copy {other.dtype}")
    sharding = [
        (getattr(t, "device_mesh", None), getattr(t, "placements", ())) for t in (tensor, other)
    ]
    if sharding[0] != sharding[1]:
        raise ValueError(
            f"the weight {name!r} is sharded as {sharding[0][1]} and its copy as {sharding[1][1]}"
        )


def _averaged_once(written: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> list[str]:
    """Return the floating-point names, of those that share their storage only the first."""
    seen: set[tuple[object, ...]] = set()
    averaged = []
    for name in names:
        tensor = _local(written[name])
        where = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        key = (tensor.device, *where, tuple(tensor.shape), tensor.stride())
        if not tensor.is_floating_point() or (where[0] and key in seen):
            continue
        seen.add(key)
        averaged.append(name)
    return averaged


def _weight_of(name: str, weights: Weights) -> float | Tensor:
    if not isinstance(weights, Mapping):
        return weights
    if name not in weights:
        raise ValueError(f"there is no merge weight for {name!r}")
    return weights[name]


def _range_of_weight(name: str, weights: Weights) -> tuple[float, float]:
    weight = _weight_of(name, weights)
    if not isinstance(weight, Tensor):
        return weight, weight
    low, high = weight.aminmax()
    return float(low), float(high)


def _check_finite(what: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all_finite(_local(tensor)):
        raise ValueError(f"{what} holds NaN or infinite values")


def _local(tensor: Tensor | float) -> Tensor:
    """Return this process's shard of a DTensor, and anything else as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[return-value]
