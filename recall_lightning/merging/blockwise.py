"""Merging snapshots into live weights, each block with coefficients of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recall_lightning.measuring.blocks import Block
from recall_lightning.measuring.linear_maps import as_matrix
from recall_lightning.merging.block_settings import Setting, setting_by_weight
from recall_lightning.merging.coefficients import Coefficient
from recall_lightning.merging.coefficients.linear_maps import (
    MapCoefficient,
    check_merged_maps,
    merge_maps_,
)
from recall_lightning.merging.functional.in_place import (
    check_alike,
    check_broadcasts,
    lerp_unchecked_,
    range_of,
    squared_distance,
    weighted_sum_,
)
from recall_lightning.merging.lora.pairs import LoraPair, lerp_adapters_
from recall_lightning.merging.running_statistics import means_of_variances, spread_of_means
from recall_lightning.weights.finite import all_finite
from recall_lightning.weights.sharding import is_sharded, local, sharded_like, total, write_into
from recall_lightning.weights.snapshot import Snapshot


def weights_of_names(
    coefficients: Mapping[str, Coefficient],
    blocks: Sequence[Block],
    snapshot: Mapping[str, Tensor],
    lora_pairs: Sequence[LoraPair] = (),
) -> dict[str, Coefficient]:
    """Spread what a rule returned over the weights that ``snapshot`` holds.

    Args:
        coefficients: By block name or, which goes first, by the weight's own name. NaN passes, for
            the merge to be refused.
        blocks: Shallow to deep.
        snapshot: By weight name; one that became trainable after it was taken has no copy.
        lora_pairs: Factors that are merged as one update.

    Raises:
        ValueError: If a weight has no coefficient, or one outside [0, 1], a name is of no block and
            no weight, or a pair's two differ.

    Example:
        >>> blocks = [Block("0", 2, 1.0, "0", ("0.weight", "0.bias"))]
        >>> copies = dict.fromkeys(blocks[0].weights)
        >>> weights_of_names({"0": 0.5, "0.bias": 0.1}, blocks, copies)
        {'0.weight': 0.5, '0.bias': 0.1}
    """
    if not isinstance(coefficients, Mapping):
        raise ValueError(f"the rule must give a mapping of block names, not {coefficients!r}")
    known = {name for block in blocks for name in (block.name, *block.weights)}
    for name in coefficients:
        if name not in known:
            raise ValueError(
                f"the rule gave {name!r} a coefficient, which must be a block or a weight: blocks "
                f"are {', '.join(block.name for block in blocks)}"
            )
    weights: dict[str, Coefficient] = {}
    for block in blocks:
        for name in block.weights:
            if name not in snapshot:
                continue
            key = name if name in coefficients else block.name
            if key not in coefficients:
                raise ValueError(
                    f"the rule must give a coefficient for the weight {name}, or for its block "
                    f"{block.name}"
                )
            weights[name] = _coefficient(coefficients[key], key, block, snapshot[name])
    _check_pairs(weights, lora_pairs)
    return weights


def _check_pairs(weights: Mapping[str, Coefficient], lora_pairs: Sequence[LoraPair]) -> None:
    for pair in lora_pairs:
        first, second = weights[pair.a], weights[pair.b]
        if first is second:
            continue
        if not (isinstance(first, float) and isinstance(second, float)) or first != second:
            raise ValueError(
                f"{pair.a} and {pair.b} are merged as one update and have the coefficients "
                f"{first} and {second}: give them the same number"
            )


def _coefficient(given: object, key: str, block: Block, copy: Tensor | None) -> Coefficient:
    what = f"the rule gave {'block ' if key == block.name else ''}{key} the coefficient {given}"
    if isinstance(given, MapCoefficient):
        return given
    if isinstance(given, Tensor) and (given.numel() != 1 or is_sharded(given)):
        return _elementwise(given, key, copy)
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:  # the last is a tensor's
        raise ValueError(f"{what}, which must be a number") from error
    if value < 0 or value > 1:
        raise ValueError(f"{what}: the snapshot's weight lies in [0, 1]")
    return value


def _elementwise(given: Tensor, key: str, copy: Tensor | None) -> Coefficient:
    shape = () if copy is None else copy.shape
    try:
        fits = torch.broadcast_shapes(given.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"the rule gave {key} coefficients of the shape {tuple(given.shape)}, which must "
            f"broadcast to the weight's {tuple(shape)}"
        )
    low, high = range_of(given)
    if low < 0 or high > 1:
        raise ValueError(
            f"the rule gave {key} coefficients from {low} to {high}: the snapshot's weight lies in "
            "[0, 1]"
        )
    if not low <= high:
        return math.nan  # has the merge refused, which then need not look at elements
    return given if copy is None else sharded_like(given.expand(shape), copy)


def scaled_by(
    weights: Mapping[str, Coefficient],
    strength: Setting,
    blocks: Sequence[Block],
    lora_pairs: Sequence[LoraPair] = (),
) -> dict[str, Coefficient]:
    """Multiply coefficients by ``strength``, which may differ from weight to weight.

    A linear map's bias goes with its weight.

    Raises:
        ValueError: If ``strength`` does not fit the blocks, or parts what is merged as one.

    Example:
        >>> scaled_by({"w": 0.5}, 0.5, [Block("0", 1, 1.0, "0", ("w",))])
        {'w': 0.25}
    """
    factors = setting_by_weight(strength, blocks)
    if all(factor == 1 for factor in factors.values()):
        return dict(weights)
    done: dict[int, MapCoefficient] = {}
    scaled: dict[str, Coefficient] = {}
    for name, weight in weights.items():
        if isinstance(weight, MapCoefficient):
            of_map = factors[weight.linear_map.weight]
            if id(weight) not in done:
                done[id(weight)] = weight.scaled(of_map)
            scaled[name] = done[id(weight)]
        else:
            scaled[name] = weight * factors[name]
    _check_pairs(scaled, lora_pairs)
    return scaled


def mean_of(weight: Coefficient) -> float:
    """Return the number that a coefficient is on average.

    >>> import torch
    >>> mean_of(torch.tensor([0.25, 0.75]))
    0.5
    """
    if isinstance(weight, MapCoefficient):
        return weight.mean
    if not isinstance(weight, Tensor):
        return weight
    return total(float(local(weight).float().sum()), weight) / max(1, weight.numel())


def mean_by_block(
    values: Mapping[str, Coefficient], blocks: Sequence[Block], sizes: Mapping[str, Tensor]
) -> dict[str, float]:
    """Average values by weight over each block that has any, weighted by numbers of elements.

    Example:
        >>> import torch
        >>> blocks = [Block("0", 4, 1.0, "0", ("a", "b"))]
        >>> mean_by_block({"a": 0.5, "b": 0.1}, blocks, {"a": torch.ones(3), "b": torch.ones(1)})
        {'0': 0.4}
    """
    means = {}
    for block in blocks:
        held = [(mean_of(values[n]), sizes[n].numel()) for n in block.weights if n in values]
        if held and len({value for value, _ in held}) == 1:
            means[block.name] = held[0][0]
        elif held:
            total = sum(size for _, size in held)
            means[block.name] = sum(value * size for value, size in held) / total
    return means


def worst_condition(
    weights: Mapping[str, Coefficient], blocks: Sequence[Block]
) -> dict[str, float]:
    """Return the largest condition number of each block that has linear maps with matrices."""
    worst: dict[str, float] = {}
    for block in blocks:
        of_maps = [weights[name] for name in block.weights if name in weights]
        conditions = [m.condition for m in of_maps if isinstance(m, MapCoefficient)]
        if conditions:
            worst[block.name] = max(conditions)
    return worst


class Drift:
    """How far live weights have gone from a snapshot, block by block, relative to its norm.

    Args:
        snapshot: Its norms are computed once.

    Example:
        >>> import torch
        >>> drift = Drift(Snapshot({"w": torch.tensor([3.0, 4.0])}))
        >>> drift.by_block({"w": torch.tensor([3.0, 5.0])}, [Block("0", 2, 1.0, "0", ("w",))])
        {'0': 0.2}
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._sizes: dict[str, float] = {}

    def by_block(self, live: Mapping[str, Tensor], blocks: Sequence[Block]) -> dict[str, float]:
        """Return ‖live − snapshot‖ / ‖snapshot‖ by block name.

        Over a snapshot of zeros it is 0 for unmoved weights and infinite for others; a NaN or an
        infinity anywhere makes it so.
        """
        drift = {}
        for block in blocks:
            names = [name for name in block.weights if name in self.snapshot]
            if block.name not in self._sizes:
                self._sizes[block.name] = squared_distance(self.snapshot, None, names)
            moved, size = squared_distance(live, self.snapshot, names), self._sizes[block.name]
            if size == 0:
                drift[block.name] = 0.0 if moved == 0 else math.inf
            else:
                drift[block.name] = math.sqrt(moved / size)
        return drift


def merge_snapshots_(
    live: Mapping[str, Tensor],
    snapshots: Sequence[Mapping[str, Tensor]],
    weights: Sequence[Mapping[str, Coefficient]],
    lora_pairs: Sequence[LoraPair] = (),
    check_finite: bool = True,
    check_elements: bool = True,
) -> dict[str, float]:
    """Merge in place: live ← live + Σᵢ wᵢ · (snapshotᵢ − live), LoRA factors by their product.

    Of running variances it is that of the mixture of what the models' normalisation layers have
    seen: :func:`~recall_lightning.merging.running_statistics.spread_of_means` comes on top.

    Args:
        live: Name to the tensor that is written.
        snapshots: Of each, name to tensor; the same names in all.
        weights: Of each, name to weight in [0, 1], a number or one an element, or a linear map's
            matrix; a name's sum to 1 at most. Of several snapshots numbers only. The same names in
            all; what has none is left alone.
        lora_pairs: The factors among the names, which are merged as ΔW = scale · BA with the weight
            of their A and brought back to their rank.
        check_finite: Whether to look for NaN and infinities among models' weights first.
        check_elements: Whether to look at weights that are one an element first. False where they
            are what :func:`weights_of_names` gave, which has done so.

    Returns:
        The fraction of ‖ΔW‖² that the return to the rank discarded, by module.

    Raises:
        ValueError: If a weight is not in its range, shapes differ, something to be merged is not
            finite, or a map or an update would not be in its precision. Nothing has been written
            then.

    Example:
        >>> import torch
        >>> live, then = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
        >>> merge_snapshots_(live, [then, then], [{"w": 0.25}, {"w": 0.5}])
        {}
        >>> live["w"]
        tensor([0.7500])
    """
    names = list(weights[0])
    for name in names:
        for what, model in [("live", live), *(("snapshot", copy) for copy in snapshots)]:
            check_alike(name, live[name], model[name])
            if check_finite and not all_finite(model[name]):
                raise ValueError(
                    f"the {what} weight {name!r} holds NaN or infinite values, and must be finite"
                )
        _check_shares(name, [given[name] for given in weights])
        weight = weights[0][name]
        if check_elements and isinstance(weight, Tensor):
            _check_elements(name, weight, live[name])
    factors = {name for pair in lora_pairs for name in (pair.a, pair.b)}
    plain = [{n: w for n, w in own.items() if n not in factors} for own in weights]
    for name, weight in plain[0].items():
        _check_fits(name, weight, live)
    maps = list({id(w): w for w in plain[0].values() if isinstance(w, MapCoefficient)}.values())
    check_merged_maps(live, snapshots[0], maps)
    shares = [{n: w for n, w in own.items() if not isinstance(w, MapCoefficient)} for own in plain]
    variances = _mixed_variances(live, snapshots, shares)  # before means are written
    # the last that may refuse, and then writes; what follows only writes
    discarded = lerp_adapters_(live, snapshots, weights, lora_pairs) if lora_pairs else {}
    merge_maps_(live, snapshots[0], maps)
    others = [{n: w for n, w in own.items() if n not in variances} for own in shares]
    _average_(live, snapshots, others)
    write_into({name: live[name] for name in variances}, variances)
    return discarded


def _average_(
    live: Mapping[str, Tensor],
    snapshots: Sequence[Mapping[str, Tensor]],
    shares: Sequence[Mapping[str, float | Tensor]],
) -> None:
    if len(snapshots) == 1:
        lerp_unchecked_(live, {name: snapshots[0][name] for name in shares[0]}, shares[0])
        return
    rest = {name: 1 - math.fsum(own[name] for own in shares) for name in shares[0]}
    out = {name: live[name] for name in rest}
    weighted_sum_(out, [out, *snapshots], [rest, *shares], check_finite=False)


@torch.no_grad()
def _mixed_variances(
    live: Mapping[str, Tensor],
    snapshots: Sequence[Mapping[str, Tensor]],
    shares: Sequence[Mapping[str, float | Tensor]],
) -> dict[str, Tensor]:
    """Return the merged running variances, of those whose running means are merged, too."""
    means = means_of_variances({name: live[name].shape for name in shares[0]})
    mixed = {name: live[name].clone() for name in means}
    _average_(mixed, snapshots, [{name: own[name] for name in means} for own in shares])
    for name, mean in means.items():
        own, copies = [given[name] for given in shares], [copy[mean] for copy in snapshots]
        local(mixed[name]).add_(spread_of_means(live[mean], copies, own))
        if not all_finite(mixed[name]):
            raise ValueError(
                f"the merged running variance {name!r} would not be finite in "
                f"{mixed[name].dtype}: running means are not, or lie too far apart"
            )
    return mixed


def _check_fits(name: str, weight: Coefficient, live: Mapping[str, Tensor]) -> None:
    if isinstance(weight, MapCoefficient) and name == weight.linear_map.weight:
        of_weight = replace(weight.linear_map, bias=None)
        rows, width = as_matrix(of_weight, {name: live[name].to("meta")}).shape  # without a copy
        width += weight.linear_map.bias is not None
        if not weight.fits(torch.empty(rows, width, device="meta")):
            raise ValueError(
                f"the merge weight of {name!r} does not fit its matrix, with any bias of the shape "
                f"{(rows, width)}: was the layer changed during the task?"
            )


def _check_shares(name: str, shares: Sequence[Coefficient]) -> None:
    numbers = [share for share in shares if not isinstance(share, Tensor | MapCoefficient)]
    if len(shares) > 1 and len(numbers) < len(shares):
        raise ValueError(f"of several snapshots {name!r} needs a number each")
    if numbers and not (min(numbers) >= 0 and sum(numbers) <= 1 + 1e-9):  # also false for NaN
        raise ValueError(f"the merge weights of {name!r} must be parts of 1, not {numbers}")
    for share in shares:
        solved = (share.mean, share.condition) if isinstance(share, MapCoefficient) else ()
        if not all(map(math.isfinite, solved)):
            raise ValueError(f"the merge weight of {name!r} must be finite")


def _check_elements(name: str, weight: Tensor, live: Tensor) -> None:
    """Check a weight an element in one pass; of a DTensor's shards, for all processes alike."""
    check_broadcasts(name, weight, live)
    low, high = range_of(weight)
    if total(float(not low <= high), weight) > 0:
        raise ValueError(f"the merge weight of {name!r} must be finite")
    if total(float(low < 0 or high > 1), weight) > 0:
        raise ValueError(
            f"the merge weight of {name!r} must lie in [0, 1], not in [{low:g}, {high:g}]"
        )
