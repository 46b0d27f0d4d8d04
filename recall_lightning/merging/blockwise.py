"""Merging snapshots into live weights, each block with coefficients of its own."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from recall_lightning.merging.adapters import LoraPair, lerp_adapters_
from recall_lightning.merging.kernels import check_alike, lerp_, squared_distance, weighted_sum_
from recall_lightning.representations.blocks import Block
from recall_lightning.snapshots import Snapshot, all_finite


def weights_of_names(
    coefficients: Mapping[str, float],
    blocks: Sequence[Block],
    snapshot: Mapping[str, Tensor],
    lora_pairs: Sequence[LoraPair] = (),
) -> dict[str, float]:
    """Spread what a rule returned over the weights that ``snapshot`` holds.

    Args:
        coefficients: By block name or, which goes first, by the weight's own name. NaN passes, for
            the merge to be refused.
        blocks: Shallow to deep.
        snapshot: By weight name; one that became trainable after it was taken has no copy.
        lora_pairs: Factors that are merged as one update.

    Raises:
        ValueError: If a weight has no coefficient, or one outside [0, 1], or a pair's two differ.

    Example:
        >>> blocks = [Block("0", 2, 1.0, "0", ("0.weight", "0.bias"))]
        >>> copies = dict.fromkeys(blocks[0].weights)
        >>> weights_of_names({"0": 0.5, "0.bias": 0.1}, blocks, copies)
        {'0.weight': 0.5, '0.bias': 0.1}
    """
    if not isinstance(coefficients, Mapping):
        raise ValueError(f"the rule gave no mapping of block names, but {coefficients!r}")
    weights: dict[str, float] = {}
    for block in blocks:
        for name in block.weights:
            key = name if name in coefficients else block.name
            if key not in coefficients:
                raise ValueError(f"the rule gave no coefficient for block {block.name}")
            if name in snapshot:
                weights[name] = _coefficient(coefficients[key], key, block)
    for pair in lora_pairs:
        if weights[pair.a] != weights[pair.b]:
            raise ValueError(
                f"{pair.a} and {pair.b} are merged as one update and have the coefficients "
                f"{weights[pair.a]} and {weights[pair.b]}: give them the same"
            )
    return weights


def _coefficient(given: object, key: str, block: Block) -> float:
    what = f"the rule gave {'block ' if key == block.name else ''}{key} the coefficient {given}"
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:  # the last is a tensor's
        raise ValueError(f"{what}, which is no number") from error
    if value < 0 or value > 1:
        raise ValueError(f"{what}: the snapshot's weight lies in [0, 1]")
    return value


def mean_by_block(
    values: Mapping[str, float], blocks: Sequence[Block], sizes: Mapping[str, Tensor]
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
        held = [(values[name], sizes[name].numel()) for name in block.weights if name in values]
        if held and len({value for value, _ in held}) == 1:
            means[block.name] = held[0][0]
        elif held:
            total = sum(size for _, size in held)
            means[block.name] = sum(value * size for value, size in held) / total
    return means


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
    weights: Sequence[Mapping[str, float]],
    lora_pairs: Sequence[LoraPair] = (),
    check_finite: bool = True,
) -> dict[str, float]:
    """Merge in place: live ← live + Σᵢ wᵢ · (snapshotᵢ − live), LoRA factors by their product.

    Args:
        live: Name to the tensor that is written.
        snapshots: Of each, name to tensor; the same names in all.
        weights: Of each, name to weight in [0, 1]; a name's sum to 1 at most.
        lora_pairs: The factors among the names, which are merged as ΔW = scale · BA with the weight
            of their A and brought back to their rank.
        check_finite: Whether to look for NaN and infinities first.

    Returns:
        The fraction of ‖ΔW‖² that the return to the rank discarded, by module.

    Raises:
        ValueError: If a weight is not in its range, shapes differ, or something to be merged is not
            finite. Nothing has been written then.

    Example:
        >>> import torch
        >>> live, then = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
        >>> merge_snapshots_(live, [then, then], [{"w": 0.25}, {"w": 0.5}])
        {}
        >>> live["w"]
        tensor([0.7500])
    """
    names = list(snapshots[0])
    for name in names:
        for what, model in [("live", live), *(("snapshot", copy) for copy in snapshots)]:
            check_alike(name, live[name], model[name])
            if check_finite and not all_finite(model[name]):
                raise ValueError(f"the {what} weight {name!r} holds NaN or infinite values")
        shares = [given[name] for given in weights]
        if not (min(shares) >= 0 and sum(shares) <= 1 + 1e-9):  # also false for NaN
            raise ValueError(f"the merge weights of {name!r} must be parts of 1, not {shares}")
    discarded = lerp_adapters_(live, snapshots, weights, lora_pairs) if lora_pairs else {}
    factors = {name for pair in lora_pairs for name in (pair.a, pair.b)}
    plain = [name for name in names if name not in factors]
    if len(snapshots) == 1:
        copies = {name: snapshots[0][name] for name in plain}
        lerp_(live, copies, weights[0], check_finite=False)
    else:
        rest = {name: 1 - math.fsum(given[name] for given in weights) for name in plain}
        out = {name: live[name] for name in plain}
        weighted_sum_(out, [out, *snapshots], [rest, *weights], check_finite=False)
    return discarded
