"""In-place arithmetic on named weights: everything is checked before anything is written."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from recall_lightning.snapshots import all_finite

_CHUNK = 1 << 18  # elements computed in float32 at a time for half-precision weights


def lerp_(
    live: Mapping[str, Tensor],
    snapshot: Mapping[str, Tensor],
    weights: float | Mapping[str, float | Tensor],
) -> None:
    """Merge in place: live ← live + w · (snapshot − live), for every name in ``snapshot``.

    float32 and float64 are computed in their own precision; half precisions in float32, in chunks,
    rounded once. Weights that equal their copy stay equal bit for bit. A live weight without a
    copy is left alone.

    Args:
        live: Name to the tensor that is written.
        snapshot: Name to the tensor of the same shape, on any device.
        weights: The snapshot's weight in [0, 1]: one for all, or by name (a float, or a tensor that
            broadcasts to the weight's shape).

    Raises:
        ValueError: If a name is unknown, a shape differs, a weight is not in [0, 1], or live
            weights or snapshot hold a NaN or an infinity. Nothing has been written then.

    Example:
        >>> live = {"w": torch.tensor([0.0, 4.0])}
        >>> lerp_(live, {"w": torch.tensor([4.0, 4.0])}, 0.25)
        >>> live["w"]
        tensor([1., 4.])
    """
    for name, copy in snapshot.items():
        if name not in live:
            raise ValueError(f"the snapshot's weight {name!r} has no live weight of that name")
        if live[name].shape != copy.shape:
            raise ValueError(
                f"the weight {name!r} has the shape {tuple(live[name].shape)} and its copy "
                f"{tuple(copy.shape)}"
            )
        _check_weight(name, _weight_of(name, weights))
        for side, tensor in (("live", live[name]), ("snapshot", copy)):
            if not all_finite(tensor):
                raise ValueError(f"the {side} weight {name!r} holds NaN or infinite values")
    with torch.no_grad():
        for name, copy in snapshot.items():
            _lerp_one_(live[name], copy, _weight_of(name, weights))


def relative_drift(
    live: Mapping[str, Tensor], snapshot: Mapping[str, Tensor], names: tuple[str, ...]
) -> float:
    """Return ‖live − snapshot‖ / ‖snapshot‖ over the weights ``names``, in float32 chunks.

    Where the snapshot is all zero the result is 0 for unmoved weights and infinite for others.

    Example:
        >>> relative_drift({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([3.0, 4.0])}, ("w",))
        0.2
    """
    moved = size = 0.0
    for name in names:
        for part, copy in _chunks(live[name], snapshot[name]):
            moved += float((part.float() - copy.float()).square().sum())
            size += float(copy.float().square().sum())
    if size == 0:
        return 0.0 if moved == 0 else float("inf")
    return (moved / size) ** 0.5


def _weight_of(name: str, weights: float | Mapping[str, float | Tensor]) -> float | Tensor:
    if not isinstance(weights, Mapping):
        return weights
    if name not in weights:
        raise ValueError(f"there is no merge weight for {name!r}")
    return weights[name]


def _check_weight(name: str, weight: float | Tensor) -> None:
    low, high = weight.aminmax() if isinstance(weight, Tensor) else (weight, weight)
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(
            f"the merge weight of {name!r} must lie in [0, 1], not in [{low:g}, {high:g}]"
        )


def _lerp_one_(live: Tensor, copy: Tensor, weight: float | Tensor) -> None:
    if live.dtype in (torch.float32, torch.float64):
        if isinstance(weight, Tensor):
            weight = weight.to(live)
        live.lerp_(copy.to(live), weight)
        return
    if isinstance(weight, Tensor):
        merged = live.float().lerp_(copy.to(live.device).float(), weight.to(live.device).float())
        live.copy_(merged)
        return
    for part, other in _chunks(live, copy):
        part.copy_(part.float().lerp_(other.to(live.device).float(), weight))


def _chunks(tensor: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two tensors of one shape alike; the parts of ``tensor`` are views of it."""
    tensor, other = tensor.detach(), other.detach().to(tensor.device)
    if not tensor.is_contiguous():  # flattening would copy, and a write be lost
        yield tensor, other
        return
    yield from zip(tensor.view(-1).split(_CHUNK), other.reshape(-1).split(_CHUNK), strict=True)
