"""The merge coefficients of a task: every block at every merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recall_lightning.metrics.figures.arrays import array, check_names
from recall_lightning.metrics.figures.heatmap import (
    draw_colour_bar,
    draw_heatmap,
    heatmap_axes,
    name_ticks,
    write_values,
)
from recall_lightning.metrics.figures.style import longest

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def coefficients_figure(
    coefficients: Tensor | Sequence[Any],
    block_names: Sequence[str],
    steps: Tensor | Sequence[int],
    label: str,
    vmin: float = 0.0,
    vmax: float = 1.0,
) -> Figure:
    """Draw the merge coefficient of every block at every merge.

    The first block, next to the model's input, is at the bottom and the deepest one at the top. Up
    to 12 blocks and 12 merges, every cell has its value.

    Args:
        coefficients: Coefficients, (blocks, merges).
        block_names: Names of the blocks, first block first.
        steps: Optimizer steps of the merges, (merges,).
        label: What a coefficient is, for the colour bar.
        vmin: Coefficient at the lower end of the colour bar.
        vmax: Coefficient at its upper end.

    Returns:
        The figure, which grows with the number of blocks and merges.

    Raises:
        ValueError: If names or steps do not match the coefficients.

    Example:
        >>> figure = coefficients_figure(
        ...     [[0.1, 0.2], [0.8, 0.9]], ["layers.0", "layers.1"], [100, 200], "weight of the past"
        ... )
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.10', '0.20', '0.80', '0.90']
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['100', '200']
    """
    values = array(coefficients, "coefficients", ndim=2)
    columns = [f"{step:.0f}" for step in array(steps, "steps", ndim=1)]
    check_names("block_names", block_names, values, axis=0)
    check_names("steps", columns, values, axis=1)

    few = max(values.shape) <= 12
    step_width = longest(columns) + 0.1
    cell_width = (
        max(0.5, step_width) if len(columns) <= 12 else max(0.04, min(0.3, 10 / len(columns)))
    )
    figure, axes = heatmap_axes(
        values,
        cell_size=(cell_width, 0.32 if few else 0.2),
        margins=(longest(block_names) + 0.3, 0.2),
        label=label,
    )
    draw_heatmap(axes, values, vmin, vmax, grid=few)
    if few:
        write_values(axes, values, decimals=2)
    name_ticks(axes, block_names, columns, every=math.ceil(step_width / cell_width))
    axes.set_xlabel("merge at optimizer step")
    axes.set_ylabel("block, deepest at top")
    draw_colour_bar(figure, axes, label)
    return figure
