"""The second moments of what linear maps are given."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
)
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.weights.naming import canonical_name
from recall_lightning.weights.sharding import is_sharded


def input_moments(
    module: nn.Module,
    maps: Sequence[LinearMap],
    batches: Sequence[Any],
    view: ModelView | ProbeForward | None = None,
    full_width: int = 512,
    rank: int = 32,
) -> dict[str, Moments]:
    """Run a model over batches and sum up the second moments of what its linear maps are given.

    The moments are means over tokens that are no padding (or over samples, or image patches),
    gathered by forward hooks in evaluation mode. The model's mode, gradients, metrics and every
    random state are as before.

    Args:
        module: The model.
        maps: Those of :func:`find_linear_maps`.
        batches: Batches on the model's device.
        view: How the module is run, and what is padding; by default found, see
            :func:`~recall_lightning.measuring.view.view_of`.
        full_width: Maps of more inputs than this have moments of low rank plus a diagonal.
        rank: That rank.

    Returns:
        Weight name to mean moments, float32 on the weight's device; a map that computed nothing is
        missing.

    Example:
        >>> from recall_lightning.measuring.linear_maps import find_linear_maps
        >>> mlp = nn.Sequential(nn.Linear(2, 3, bias=False))
        >>> maps, _ = find_linear_maps(mlp)
        >>> moments = input_moments(mlp, maps, [torch.eye(2)])
        >>> moments["0.weight"].matrix
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    view = view_of(module, view)

    def sums_of(shares: bool) -> InputSums:
        sums = InputSums(maps, view, full_width, rank, shares)
        with undisturbed(module), sums.gathered_from(module):
            for batch in batches:
                sums.batch = batch
                view.forward(module, copy.copy(batch))  # a forward may pop what it takes
        return sums

    return sums_where_shared(module, sums_of).means()


def sums_where_shared(module: nn.Module, sums_of: Callable[[bool], InputSums]) -> InputSums:
    """Return what ``sums_of(shares)`` does, anew without sharing where that has turned out wrong.

    Processes that have shards of one model run it equally often, so there nothing is shared.
    """
    shares = not any(is_sharded(parameter) for parameter in module.parameters())
    sums = sums_of(shares)
    return sums_of(False) if sums.have_parted else sums


class InputSums:
    """Sums of what linear maps are given while a model runs.

    Args:
        maps: The maps.
        view: Of the model; it tells what is padding.
        full_width: Maps of more inputs than this have moments of low rank plus a diagonal.
        rank: That rank.
        shares: Whether what is given to several maps one after the other, as to the projections of
            an attention, is summed once for all of them.

    Attributes:
        batch: What the model is running on, for its mask; nothing is summed while it is None.
    """

    def __init__(
        self,
        maps: Sequence[LinearMap],
        view: ModelView,
        full_width: int,
        rank: int,
        shares: bool = True,
    ) -> None:
        self.maps, self.view, self.full_width, self.rank = maps, view, full_width, rank
        self.batch: Any = None
        self._sums: dict[str, Moments] = {}
        self._shares = shares
        self._leaders: dict[str, str] = {}  # of maps that were given the same tensors as another
        self._calls: Counter[str] = Counter()
        self._last: _Given | None = None

    def gathered_from(self, module: nn.Module) -> AbstractContextManager[None]:
        """Gather inside the ``with`` block, by forward hooks."""

        def register(child: nn.Module, linear_map: LinearMap) -> RemovableHandle:
            return child.register_forward_pre_hook(self._hook_of(linear_map), with_kwargs=True)

        return hooked(module, self.maps, register)

    def means(self) -> dict[str, Moments]:
        """Return weight name to mean moments, of the maps that computed something.

        Maps that share their inputs have one and the same object.
        """
        self._last = None
        means = {name: sums.mean() for name, sums in self._sums.items() if float(sums.count) > 0}
        followers = {n: means[leader] for n, leader in self._leaders.items() if leader in means}
        means |= followers
        return {m.weight: means[m.weight] for m in self.maps if m.weight in means}

    @property
    def have_parted(self) -> bool:
        """Whether maps that shared their inputs were then given others: their sums are wrong."""
        return any(self._calls[n] != self._calls[lead] for n, lead in self._leaders.items())

    def _hook_of(self, linear_map: LinearMap) -> Callable[..., None]:
        def hook(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.batch is not None:
                self._add(linear_map, child, args[0] if args else next(iter(kwargs.values())))

        return hook

    @torch.no_grad()
    def _add(self, linear_map: LinearMap, child: nn.Module, given: Any) -> None:
        features = linear_map.kind in ("linear", "transposed")
        fits = isinstance(given, Tensor) and not (
            features and given.shape[-1:] != (linear_map.inputs,)
        )
        if not fits:
            return  # the module itself will say what is wrong with it
        mask = self.view.mask(self.batch, linear_map.modules[0])
        now = _Given(linear_map, given, given._version, mask)
        if self._shares and self._is_summed(now):
            return
        if linear_map.weight not in self._sums:
            empty = empty_moments(linear_map, given.device, self.full_width, self.rank)
            self._sums[linear_map.weight] = empty
        with torch.autocast(given.device.type, enabled=False):  # sums want float32
            self._sums[linear_map.weight].update(rows_of(linear_map, child, given, mask))
        self._calls[linear_map.weight] += 1
        self._last = now

    def _is_summed(self, now: _Given) -> bool:
        """Tell whether a map's inputs have just been summed for another, which it follows."""
        name, last = now.linear_map.weight, self._last
        lead = None if last is None or not last.is_like(now) else last.linear_map.weight
        is_new = name not in self._sums and name not in self._leaders
        if is_new and lead is not None and self._calls[lead] == 1:
            self._leaders[name] = lead
        if name not in self._leaders:
            return False
        if lead == self._leaders[name]:
            self._calls[name] += 1
        return True  # though it may not be: then they have parted


@dataclass(frozen=True, eq=False)
class _Given:
    """What a map was given."""

    linear_map: LinearMap
    tensor: Tensor
    version: int
    mask: Tensor | None

    def is_like(self, other: _Given) -> bool:
        one, two = self.linear_map, other.linear_map
        alike = one.weight != two.weight and self.tensor is other.tensor
        alike &= self.version == other.version and one.kind == two.kind == "linear"
        if not alike or (one.bias is None) != (two.bias is None):
            return False
        if self.mask is None or other.mask is None:
            return self.mask is other.mask
        return self.mask is other.mask or torch.equal(self.mask, other.mask)


@contextmanager
def hooked(
    module: nn.Module,
    maps: Iterable[LinearMap],
    register: Callable[[nn.Module, LinearMap], RemovableHandle],
) -> Iterator[None]:
    """Register hooks with the modules of linear maps, and remove them after the ``with`` block."""
    modules = {canonical_name(name): child for name, child in module.named_modules()}
    handles = []
    try:
        for linear_map in maps:
            own = [modules[name] for name in linear_map.measured if name in modules]
            handles += [register(child, linear_map) for child in own]
        yield
    finally:
        for handle in handles:
            handle.remove()


def empty_moments(
    linear_map: LinearMap, device: torch.device, full_width: int = 512, rank: int = 32
) -> Moments:
    """Return the moments of no input, of the kind that :func:`input_moments` gives a map.

    Example:
        >>> linear_map = LinearMap("w", None, "linear", ("",), 3)
        >>> empty_moments(linear_map, torch.device("cpu")).matrix.shape
        torch.Size([3, 3])
    """
    if linear_map.kind == "embedding":
        return RowCounts.empty(linear_map.width, device)
    return empty_side(linear_map.width, linear_map.inputs > full_width, rank, device)


def empty_side(width: int, is_wide: bool, rank: int, device: torch.device) -> Moments:
    """Return the moments of nothing, as a matrix or, of a wide side, of low rank."""
    if is_wide:
        return LowRankMoments.empty(width, min(rank, width), device)
    return FullMoments.empty(width, device)


def rows_of(
    linear_map: LinearMap, child: nn.Module, given: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the inputs one by one, (inputs, width), without those on padding."""
    if linear_map.kind == "convolution":
        assert isinstance(child, (nn.Conv1d, nn.Conv2d))
        rows = _unfolded(child, given)
    else:
        tokens = given.shape if linear_map.kind == "embedding" else given.shape[:-1]
        chosen = mask is not None and tokens == mask.shape
        rows = given[mask] if chosen else given
        one = linear_map.kind == "embedding"
        rows = rows.flatten() if one else rows.reshape(-1, given.shape[-1])
    if linear_map.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows


def _unfolded(child: nn.Conv1d | nn.Conv2d, images: Tensor) -> Tensor:
    """Return the patches that a convolution multiplies, (patches, in · kernel)."""
    spatial = len(child.kernel_size)
    images = images if images.dim() == spatial + 2 else images[None]
    if child.padding_mode != "zeros" or isinstance(child.padding, str):
        mode = "constant" if child.padding_mode == "zeros" else child.padding_mode
        images = functional.pad(images, child._reversed_padding_repeated_twice, mode=mode)
        padding: tuple[int, ...] = (0,) * spatial
    else:
        padding = child.padding
    sizes = (child.kernel_size, child.dilation, padding, child.stride)
    if spatial == 1:  # unfold knows images only
        images = images[:, :, None]
        first = ((1,), (1,), (0,), (1,))
        sizes = tuple((*one, *size) for one, size in zip(first, sizes, strict=True))  # type: ignore[assignment]
    return functional.unfold(images, *sizes).transpose(1, 2).flatten(0, 1)
