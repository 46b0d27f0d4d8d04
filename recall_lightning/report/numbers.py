"""Numbers as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable


def decimals_for(values: Iterable[float]) -> int:
    """Return how many decimals show the largest of some numbers with three or four digits.

    Example:
        >>> decimals_for([0.912, 0.5]), decimals_for([12.5, 3.0]), decimals_for([0.0123])
        (3, 2, 4)
    """
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if not largest:
        return 3
    digits = math.floor(math.log10(largest)) + 1
    return min(9, max(0, 4 - digits if digits > 0 else 3 - digits))


def shown(value: float | None, decimals: int) -> str:
    """Write a number; a dash where there is none, an exponent where it has too many digits.

    Example:
        >>> shown(0.5, 3), shown(math.nan, 3), shown(-0.0001, 3), shown(12345678.0, 0)
        ('0.500', '–', '0.000', '1.23e+07')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:.{decimals}f}"
    if not float(text):
        return text.removeprefix("-")
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> duration(0.042), duration(9.26), duration(75), duration(7260), duration(math.inf)
        ('0.04 s', '9.3 s', '1 min 15 s', '2 h 1 min', 'an unknown time')
    """
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
