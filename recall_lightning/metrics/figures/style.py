"""Colours, line styles and font sizes that the figures share, and the width of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SMALL, TEXT = 9, 10  # font sizes in points
_CHARACTER = 0.085  # inches: width of an average character at `TEXT`, rounded up

# Okabe & Ito's colours, which stay apart under every colour blindness, without their yellow, which
# is too light for a line on white. More tasks than colours go on with another line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":")
GREYS = ("0.15", "0.5", "0.7")


def line_style(task: int) -> dict[str, Any]:
    """What tells a task's line from the others."""
    return {
        "color": COLOURS[task % len(COLOURS)],
        "linestyle": _LINE_STYLES[task // len(COLOURS) % len(_LINE_STYLES)],
    }


def longest(names: Sequence[str]) -> float:
    """Width of the longest name in inches."""
    return _CHARACTER * max(len(name) for name in names)
