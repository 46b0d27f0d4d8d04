"""The task matrix: the score on every task after training each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recall_lightning.metrics.figures.arrays import array, check_names, finite
from recall_lightning.metrics.figures.heatmap import (
    draw_colour_bar,
    draw_heatmap,
    heatmap_axes,
    name_ticks,
    write_values,
)
from recall_lightning.metrics.figures.style import SMALL, longest

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def task_matrix_figure(
    matrix: Tensor | Sequence[Any],
    task_names: Sequence[str],
    score_name: str,
    higher_is_better: bool,
    row_names: Sequence[str] | None = None,
) -> Figure:
    """Draw a task matrix: the score on every task after training each task.

    The darker end of the colour bar, its upper one, is the better one in both directions. Scores
    that were not measured are hatched.

    Args:
        matrix: Scores, (N, T); row i was measured after training task i.
        task_names: Names of the T tasks.
        score_name: What the scores are, with their unit, for the colour bar.
        higher_is_better: Direction of the scores.
        row_names: Names of the N rows. None stands for "after <task>", or, if there is one row more
            than there are tasks, for "before training" and then those.

    Returns:
        The figure, which grows with the number of tasks and the length of their names.

    Raises:
        ValueError: If the names do not match the matrix.

    Example:
        >>> matrix = [[0.9, float("nan")], [0.5, 0.8]]
        >>> figure = task_matrix_figure(matrix, ["cats", "dogs"], "accuracy", True)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['0.900', '0.500', '0.800']
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['after cats', 'after dogs']
    """
    scores = array(matrix, "matrix", ndim=2)
    if row_names is None:
        before = ["before training"] if len(scores) == len(task_names) + 1 else []
        row_names = [*before, *(f"after {name}" for name in task_names)][: len(scores)]
    check_names("row_names", row_names, scores, axis=0)
    check_names("task_names", task_names, scores, axis=1)

    # Cells are as wide as the names if these are short and few; otherwise the names are turned.
    name_width = longest(task_names)
    turned = name_width > (1.3 if len(task_names) <= 8 else 0.75)
    cell_width = 0.75 if turned else max(0.75, name_width)
    figure, axes = heatmap_axes(
        scores,
        cell_size=(cell_width, 0.5),
        margins=(longest(row_names), 0.75 * name_width if turned else 0.2),
        label=score_name,
    )
    low, high = _limits(scores)
    draw_heatmap(axes, scores, low, high, reverse=not higher_is_better)
    write_values(axes, scores)
    name_ticks(axes, row_names, task_names, turned=turned)
    axes.invert_yaxis()
    axes.set_xlabel("score on task")
    bar = draw_colour_bar(figure, axes, score_name)
    bar.set_title("better ↑", fontsize=SMALL)
    if not higher_is_better:
        bar.invert_yaxis()
    return figure


def _limits(values: Any) -> tuple[float, float]:
    """Lowest and highest finite value, or a range around it where there is but one."""
    low, high = min(finite(values)), max(finite(values))
    margin = 0.0 if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin
