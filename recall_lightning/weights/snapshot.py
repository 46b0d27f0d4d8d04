"""Named copies of a model's weights, taken at a task boundary."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b

import torch
from torch import Tensor, nn

from recall_lightning.checks import first_of
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.naming import canonical_name, find_weights, named_weights
from recall_lightning.weights.sharding import is_sharded, local, reshard, sharded_like


def weights_to_copy(module: nn.Module) -> dict[str, Tensor]:
    """Return :func:`named_weights`, after checking that a copy of them is worth having.

    Raises:
        ValueError: If there is none, or one holds a NaN or an infinity.
    """
    live = named_weights(module)
    if not live:
        raise ValueError("the model needs a trainable floating-point parameter to snapshot")
    for name, weight in live.items():
        if not all_finite(weight):
            raise ValueError(
                f"the weight {name!r} holds NaN or infinite values at the snapshot, and must be "
                "finite"
            )
    return live


def frozen_digest(module: nn.Module) -> str:
    """Identify what a snapshot leaves out, the frozen parameters, by a sample of their values.

    Example:
        >>> layer = nn.Linear(2, 2).requires_grad_(False)
        >>> before = frozen_digest(layer)
        >>> _ = layer.weight.add_(1)
        >>> before == frozen_digest(layer)
        False
    """
    digest, copied = blake2b(digest_size=16), set(map(id, named_weights(module).values()))
    for name, parameter in module.named_parameters():
        shard = local(parameter)
        if id(parameter) not in copied and shard.numel() and shard.device.type != "meta":
            flat = shard.detach().reshape(-1)
            sample = flat[:: max(1, len(flat) // 256)].contiguous().view(torch.uint8)
            digest.update(canonical_name(name).encode() + sample.cpu().numpy().tobytes())
    return digest.hexdigest()


class Snapshot(Mapping[str, Tensor]):
    """A copy of a module's weights: a read-only mapping of canonical name to tensor.

    Args:
        tensors: The copies, by canonical name.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> snapshot = Snapshot.take(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight.zero_()
        >>> bool((snapshot["weight"] == 0).any()), snapshot.nbytes
        (False, 8)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    @classmethod
    def take(cls, module: nn.Module, device: torch.device | str | None = None) -> "Snapshot":
        """Copy every weight of ``module`` (see :func:`named_weights`).

        Args:
            module: The live module.
            device: Where the copies live; None keeps each beside its parameter. The CPU's copies
                of a GPU's weights lie in pinned memory, from which a merge streams them.

        Raises:
            ValueError: If the module has no trainable weight, or one holds a NaN or an infinity.
        """
        live = weights_to_copy(module)
        tensors = {
            name: weight.detach().to(device, copy=True) if device else weight.detach().clone()
            for name, weight in live.items()
        }
        tensors = {name: _pinned_for(tensor, live[name]) for name, tensor in tensors.items()}
        return cls(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes that the copies occupy in this process."""
        return sum(local(tensor).numel() * tensor.element_size() for tensor in self.values())

    def check_shapes(self, live: Mapping[str, Tensor]) -> None:
        """Check that every live weight has the shape of its copy; a weight that is gone has none.

        Raises:
            ValueError: Naming up to three weights that changed their shape, or saying that all are
                gone.
        """
        if not any(name in live for name in self):
            raise ValueError(
                f"the snapshot no longer matches the model: all of its weights, {next(iter(self))} "
                "first, are gone; change a model's architecture only at a task boundary"
            )
        what = [
            f"{name} ({tuple(self[name].shape)} then, {tuple(live[name].shape)} now)"
            for name in self
            if name in live and self[name].shape != live[name].shape
        ]
        if what:
            raise ValueError(
                f"the snapshot no longer matches the model: {first_of(what)}; change a "
                "model's architecture only at a task boundary"
            )

    def without(self, names: Collection[str]) -> "Snapshot":
        """Return the snapshot without some of its copies; itself if it has none of these.

        Example:
            >>> list(Snapshot({"a": torch.ones(1), "b": torch.ones(1)}).without({"a"}))
            ['b']
        """
        if not any(name in self for name in names):
            return self
        return Snapshot({name: copy for name, copy in self.items() if name not in names})

    def to_devices_of(
        self, live: Mapping[str, Tensor], device: torch.device | None = None
    ) -> "Snapshot":
        """Return the snapshot with each copy on ``device``, or on that of its live weight.

        A whole copy of a sharded weight becomes a shard.
        """

        def moved(copy: Tensor, weight: Tensor) -> Tensor:
            if is_sharded(weight):
                return sharded_like(copy, weight)
            return _pinned_for(copy.to(device or weight.device), weight)

        return Snapshot(
            {name: moved(copy, live[name]) if name in live else copy for name, copy in self.items()}
        )

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Let ``module`` compute with the snapshot's weights inside the ``with`` block.

        The live weights come back bit for bit, also when the block raises. Where they can make way
        for the copies, nothing is copied; the block may then not write into a weight, or the copy
        would change. What is gone from the module is left out.
        """
        reshard(module)
        live = find_weights(module, self)
        self.check_shapes(live)
        copies = {name: self[name] for name in live}
        exchanged = _exchangeable(module, live, copies)
        kept = {
            name: live[name].data if name in exchanged else live[name].detach().clone()
            for name in live
        }
        try:
            _put(live, copies, exchanged)
            yield
        finally:
            _put(live, kept, exchanged)


def _put(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], exchanged: set[str]) -> None:
    """Have weights hold other tensors, some of them as their very memory."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in exchanged:
                live[name].data = tensor
            else:
                live[name].copy_(tensor)


def _exchangeable(
    module: nn.Module, live: Mapping[str, Tensor], copies: Mapping[str, Tensor]
) -> set[str]:
    """Name the weights that can have their copy as their memory while a module computes.

    The copy must be of the same kind and device. Weights whose memory others see too cannot, nor
    can what a forward writes into: running statistics, and embeddings with a ``max_norm``.
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    users = Counter(_storage(tensor) for tensor in tensors.values())
    renormed = {
        id(child.weight)
        for child in module.modules()
        if getattr(child, "max_norm", None) is not None and hasattr(child, "weight")
    }
    return {
        name
        for name, copy in copies.items()
        if isinstance(weight := live[name], nn.Parameter)
        and id(weight) not in renormed
        and not is_sharded(weight)
        and (copy.device, copy.dtype) == (weight.device, weight.dtype)
        and users[_storage(weight)] == 1
    }


def _storage(tensor: Tensor) -> int:
    return local(tensor).untyped_storage().data_ptr()


def _pinned_for(copy: Tensor, live: Tensor) -> Tensor:
    return copy.pin_memory() if live.is_cuda and copy.device.type == "cpu" else copy
