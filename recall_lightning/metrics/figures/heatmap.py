"""Heatmaps with named rows and columns, values in their cells and a colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recall_lightning.metrics.figures.arrays import finite
from recall_lightning.metrics.figures.style import SMALL, longest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR_MAP = "YlGnBu"


def heatmap_axes(
    values: Any, cell_size: tuple[float, float], margins: tuple[float, float], label: str
) -> tuple[Figure, Axes]:
    """Axes on a figure with room for cells, for the names left of and below them, and for a bar.

    Sizes are widths and heights in inches.
    """
    from matplotlib.figure import Figure

    rows, columns = values.shape
    width = max(1.6, cell_size[0] * columns)
    height = max(1.6, cell_size[1] * rows, longest([label]))
    figure = Figure(
        figsize=(1.15 * width + margins[0] + 0.9, height + margins[1] + 0.6), layout="constrained"
    )
    return figure, figure.add_subplot()


def draw_heatmap(
    axes: Axes,
    values: Any,
    vmin: float,
    vmax: float,
    reverse: bool = False,
    grid: bool = True,
) -> None:
    """Draw a heatmap, first row at the bottom, on a hatched ground that shows where NaN is."""
    axes.patch.set(facecolor="white", edgecolor="0.8", hatch="////")
    axes.pcolormesh(
        values,
        cmap=_COLOUR_MAP + ("_r" if reverse else ""),
        vmin=vmin,
        vmax=vmax,
        edgecolors="white" if grid else "none",
        linewidth=1.5 if grid else 0,
    )
    axes.spines[:].set_visible(False)


def write_values(axes: Axes, values: Any, decimals: int | None = None) -> None:
    """Write every measured value into its cell, black or white, whichever is easier to read."""
    (mesh,) = axes.collections
    if decimals is None:
        decimals = _decimals(values)
    for row, column in zip(*(values == values).nonzero(), strict=True):
        value = values[row, column]
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{value:.3g}" if decimals < 0 else f"{value:.{decimals}f}",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=_ink_on(mesh.to_rgba(value)),
        )


def name_ticks(
    axes: Axes,
    row_names: Sequence[str],
    column_names: Sequence[str],
    every: int = 1,
    turned: bool = False,
) -> None:
    """Name each row and every so many columns at the middle of their cells."""
    axes.tick_params(length=0)
    columns = [column + 0.5 for column in range(0, len(column_names), every)]
    axes.set_xticks(columns, column_names[::every], parse_math=False)
    axes.set_yticks([row + 0.5 for row in range(len(row_names))], row_names, parse_math=False)
    if turned:
        for text in axes.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")


def draw_colour_bar(figure: Figure, axes: Axes, label: str) -> Axes:
    """Draw the bar that says what the heatmap's colours are, and return its axes."""
    bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02, aspect=25)
    bar.set_label(label, parse_math=False)
    bar.outline.set_visible(False)
    return bar.ax


def _decimals(values: Any) -> int:
    """Decimals that give the largest value three digits; -1 where it needs an exponent."""
    largest = max(map(abs, finite(values))) or 1.0
    digits = math.floor(math.log10(largest)) + 1
    return -1 if digits > 5 or digits < -1 else max(0, 3 - max(digits, 0))


def _ink_on(colour: Any) -> str:
    """Black or white, whichever has more contrast with a colour by the measure of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if luminance > 0.179 else "white"
