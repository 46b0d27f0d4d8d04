"""The second moments of what linear maps are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recall_lightning.measuring.bags import dense_parts, sequences
from recall_lightning.measuring.batches import detached
from recall_lightning.measuring.forward import ProbeForward
from recall_lightning.measuring.isolation import undisturbed
from recall_lightning.measuring.linear_maps import LinearMap
from recall_lightning.measuring.map_inputs import given_to, rows_of
from recall_lightning.measuring.moments import (
    FullMoments,
    LowRankMoments,
    Moments,
    RowCounts,
)
from recall_lightning.measuring.multiplications import multiplications, products_apart
from recall_lightning.measuring.view import ModelView, view_of
from recall_lightning.weights.naming import named_submodules
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
        Map name to mean moments, float32 on the weight's device; a map that computed nothing is
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
        with undisturbed(module), sums.gathered_from(module), products_apart():
            for batch in batches:
                sums.batch = batch
                view.forward(module, detached(batch))  # a forward may write into it
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

    @contextmanager
    def gathered_from(self, module: nn.Module) -> Iterator[None]:
        """Gather inside the ``with`` block, by forward hooks and where weights are multiplied."""

        def register(child: nn.Module, linear_map: LinearMap) -> RemovableHandle:
            return child.register_forward_pre_hook(self._hook_of(linear_map), with_kwargs=True)

        with hooked(module, self.maps, register), multiplications(module, self.maps, self._see):
            yield

    def means(self) -> dict[str, Moments]:
        """Return map name to mean moments, of the maps that computed something.

        Maps that share their inputs have one and the same object.
        """
        self._last = None
        means = {name: sums.mean() for name, sums in self._sums.items() if float(sums.count) > 0}
        followers = {n: means[leader] for n, leader in self._leaders.items() if leader in means}
        means |= followers
        return {m.name: means[m.name] for m in self.maps if m.name in means}

    @property
    def have_parted(self) -> bool:
        """Whether maps that shared their inputs were then given others: their sums are wrong."""
        return any(self._calls[n] != self._calls[lead] for n, lead in self._leaders.items())

    def _hook_of(self, linear_map: LinearMap) -> Callable[..., None]:
        def hook(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.batch is not None:
                self._add(linear_map, child, given_to(child, args, kwargs))

        return hook

    def _see(self, linear_map: LinearMap, owner: nn.Module, given: Tensor, y: Tensor) -> Tensor:
        if self.batch is not None:
            self._add(linear_map, owner, given)
        return y

    @torch.no_grad()
    def _add(self, linear_map: LinearMap, child: nn.Module, given: Any) -> None:
        features = linear_map.kind in ("linear", "transposed", "projection")
        fits = isinstance(given, Tensor) and not (
            features and given.shape[-1:] != (linear_map.inputs,)
        )
        if not fits:
            return  # the module itself will say what is wrong with it
        mask = self.view.mask(self.batch, linear_map.modules[0])
        now = _Given(linear_map, given, given._version, mask)
        if self._shares and self._is_summed(now):
            return
        if linear_map.name not in self._sums:
            empty = empty_moments(linear_map, given.device, self.full_width, self.rank)
            self._sums[linear_map.name] = empty
        with torch.autocast(given.device.type, enabled=False):  # sums want float32
            self._sum(self._sums[linear_map.name], now, child)
        self._calls[linear_map.name] += 1
        self._last = now

    def _is_summed(self, now: _Given) -> bool:
        """Tell whether a map's inputs have just been summed for another, which it follows."""
        name, last = now.linear_map.name, self._last
        lead = None if last is None or not last.is_like(now) else last.linear_map.name
        is_new = name not in self._sums and name not in self._leaders
        if is_new and lead is not None and self._calls[lead] == 1:
            self._leaders[name] = lead
        if name not in self._leaders:
            return False
        if lead == self._leaders[name]:
            self._calls[name] += 1
        return True  # though it may not be: then they have parted

    def _sum(self, sums: Moments, now: _Given, child: nn.Module) -> None:
        linear_map, given, mask = now.linear_map, now.tensor, now.mask
        if linear_map.kind == "bag" and isinstance(child, nn.Embedding):
            self._add_sequences(sums, child, given, mask)
            return
        if isinstance(child, nn.MultiheadAttention) and given.dim() == 3:
            given = given.transpose(0, 1)  # its time is first
        rows = rows_of(linear_map, child, given, mask)
        for part in dense_parts(rows) if rows.is_sparse else (rows,):
            sums.update(part)

    def _add_sequences(
        self, sums: Moments, child: nn.Embedding, ids: Tensor, mask: Tensor | None
    ) -> None:
        """Add half of what sequences hold together, and half of their lookups one by one."""
        assert isinstance(sums, FullMoments | LowRankMoments)
        if mask is not None and mask.shape != ids.shape:
            mask = None
        if ids.dim() < 2 or ids.shape[-1] < 2:  # one lookup a sample
            mask = None if mask is None else mask.reshape(-1, 1)
            _, shares = sequences(child, ids.reshape(-1, 1), mask)
            sums.add_diagonal(shares, ids.numel())
            return
        bags, shares = sequences(child, ids, mask)
        for part in dense_parts(bags):
            sums.update(part * 0.5**0.5)
        sums.add_diagonal(shares / 2, 0)


@dataclass(frozen=True, eq=False)
class _Given:
    """What a map was given."""

    linear_map: LinearMap
    tensor: Tensor
    version: int
    mask: Tensor | None

    def is_like(self, other: _Given) -> bool:
        one, two = self.linear_map, other.linear_map
        alike = one.name != two.name and self.tensor is other.tensor
        alike &= self.version == other.version
        alike &= one.kind == two.kind and one.kind in ("linear", "projection")
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
    modules = named_submodules(module)
    handles = []
    try:
        for linear_map in maps:
            if linear_map.kind == "projection":  # see multiplications
                continue
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


def empty_side(
    width: int, is_wide: bool, rank: int, device: torch.device
) -> FullMoments | LowRankMoments:
    """Return the moments of nothing, as a matrix or, of a wide side, of low rank."""
    if is_wide:
        return LowRankMoments.empty(width, min(rank, width), device)
    return FullMoments.empty(width, device)
