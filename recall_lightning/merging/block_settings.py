"""Settings that may differ from block to block: a number, a list over depth, or name patterns."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real

from recall_lightning.measuring.blocks import Block

Setting = float | Sequence[float] | Mapping[str, float | Sequence[float]]


def setting_by_weight(setting: Setting, blocks: Sequence[Block]) -> dict[str, float]:
    """Give every weight of the blocks its value of a setting.

    Args:
        setting: A number for all; a list that is interpolated linearly over depth, its first value
            for the first block and its last for the last; or a mapping of shell-style patterns to
            either. A pattern is compared with the weight's name and its block's name; the first
            that matches counts, so end with ``"*"``.
        blocks: Shallow to deep.

    Returns:
        Weight name to value, in the blocks' order.

    Raises:
        ValueError: If the list is empty, a value is no number, a weight matches no pattern, or a
            pattern matches no weight.

    Example:
        >>> blocks = [Block(n, 1, 0.3, n, (f"{n}.attention", f"{n}.mlp")) for n in ("0", "1", "2")]
        >>> setting_by_weight({"*.mlp": [0.5, 0.3], "*": 0.1}, blocks)["1.mlp"]
        0.4
    """
    settings = setting if isinstance(setting, Mapping) else {"*": setting}
    numbers_of(settings)
    by_weight, unused = {}, set(settings)
    for depth, block in enumerate(blocks):
        for name in block.weights:
            pattern = next((p for p in settings if _matches(p, name, block.name)), None)
            if pattern is None:
                raise ValueError(
                    f"the weight {name!r} matches none of the patterns {', '.join(settings)}: add "
                    "a value for '*'"
                )
            unused.discard(pattern)
            by_weight[name] = _at_depth(settings[pattern], depth, len(blocks))
    unused.discard("*")
    if unused:
        shown = ", ".join(block.name for block in blocks[:4])
        raise ValueError(
            f"the pattern {sorted(unused)[0]!r} matches no weight, or none that is left by those "
            f"before it; the blocks are {shown}{', …' if len(blocks) > 4 else ''}"
        )
    return by_weight


def _matches(pattern: str, *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _at_depth(value: float | Sequence[float], depth: int, blocks: int) -> float:
    if isinstance(value, Real):
        return float(value)
    assert isinstance(value, Sequence)
    position = depth / max(blocks - 1, 1) * (len(value) - 1)
    left = min(int(position), len(value) - 1)
    right = min(left + 1, len(value) - 1)
    return value[left] + (position - left) * (value[right] - value[left])


def numbers_of(setting: Setting) -> list[float]:
    """Return all numbers that a setting holds.

    Raises:
        ValueError: If it holds anything else, or an empty list.

    Example:
        >>> numbers_of({"*.mlp": [0.5, 0.3], "*": 0.1})
        [0.5, 0.3, 0.1]
    """
    numbers: list[float] = []
    for value in setting.values() if isinstance(setting, Mapping) else [setting]:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not values or any(isinstance(v, bool) or not isinstance(v, Real) for v in values):
            raise ValueError(f"{value!r} must be a number or a list of numbers over depth")
        numbers += values
    return numbers
