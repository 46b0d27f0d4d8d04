"""The curves of a run: the score on every task, over all steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from recall_lightning.metrics.figures.arrays import array, check_names
from recall_lightning.metrics.figures.style import GREYS, SMALL, line_style, longest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor


def curves_figure(
    steps: Tensor | Sequence[int],
    scores: Tensor | Sequence[Any],
    task_names: Sequence[str],
    score_name: str,
    boundaries: Sequence[tuple[int, str]] = (),
    marks: Mapping[str, Sequence[int]] | None = None,
    found: Sequence[int] = (),
) -> Figure:
    """Draw the score on every task over a whole run.

    Args:
        steps: Optimizer steps at which scores were measured, (N,).
        scores: Scores, (N, T), one line a task. A line has a gap where a score is NaN.
        task_names: Names of the T tasks.
        score_name: What the scores are, with their unit, for the y axis.
        boundaries: Step at which each task starts, with the task's name.
        marks: Steps to mark along the bottom, by the label that stands for them in the legend, such
            as ``{"merge": [100, 200]}``.
        found: Steps after which a task ended that nobody announced, as far as that was found.

    Returns:
        The figure, with its legend right of the axes.

    Raises:
        ValueError: If ``steps``, ``scores`` and ``task_names`` do not match.

    Example:
        >>> scores = [[0.1, 0.1], [0.9, 0.2], [0.6, 0.8]]
        >>> boundaries = [(0, "cats"), (10, "dogs")]
        >>> figure = curves_figure(
        ...     [0, 10, 20], scores, ["cats", "dogs"], "accuracy", boundaries, {"merge": [12, 16]}
        ... )
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['cats', 'dogs', 'merge']
    """
    from matplotlib.figure import Figure

    x, y = array(steps, "steps", ndim=1), array(scores, "scores", ndim=2)
    if len(x) != len(y):
        raise ValueError(
            f"`steps` has {len(x)} entries and `scores` {len(y)} rows: pass one row for each step."
        )
    check_names("task_names", task_names, y, axis=1)
    marks = marks or {}

    legend_names = [*task_names, *marks, *["boundary found"] * bool(found)]
    width, height = 6.5, max(3.8, 1 + 0.23 * len(legend_names), longest([score_name]))
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    handles = [
        axes.plot(x, y[:, task], marker="o", markersize=3.5, linewidth=1.6, **line_style(task))[0]
        for task in range(y.shape[1])
    ]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(score_name, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    rise = _draw_boundaries(axes, boundaries, task_names, width)
    figure.set_size_inches(width + 1.5 + longest(legend_names) + rise, height + 0.3 + rise)
    handles += _draw_marks(axes, marks)
    handles += [axes.axvline(step, color="0.25", linewidth=1, linestyle="--") for step in found][:1]
    legend = figure.legend(handles, legend_names, loc="outside right upper", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_boundaries(
    axes: Axes, boundaries: Sequence[tuple[int, str]], task_names: Sequence[str], width: float
) -> float:
    """Draw a line where each task starts, named above the axes in a darker tone of its curve.

    Returns the inches by which turned names may stick out above and right of the axes.
    """
    from matplotlib.colors import to_rgb

    boundaries = sorted(boundaries)
    for step, _ in boundaries:  # before the limits are read: a task may start before any score
        axes.axvline(step, color="0.75", linewidth=0.8, zorder=0)
    low, high = axes.get_xlim()
    inch = (high - low) / width
    room = [later - step for (step, _), (later, _) in pairwise([*boundaries, (high, "")])]
    turned = any(
        longest([name]) * inch > gap for (_, name), gap in zip(boundaries, room, strict=True)
    )
    free = low
    for step, name in boundaries:
        colour = line_style(task_names.index(name))["color"] if name in task_names else "0.3"
        axes.text(
            max(step, free),
            1.02,
            name,
            transform=axes.get_xaxis_transform(),
            color=[0.7 * part for part in to_rgb(colour)],
            fontsize=SMALL,
            rotation=45 if turned else 0,
            rotation_mode="anchor",
            parse_math=False,
        )
        free = max(step, free) + 0.25 * inch  # names of close starts move apart
    return 0.7 * longest([name for _, name in boundaries]) if turned else 0.0


def _draw_marks(axes: Axes, marks: Mapping[str, Sequence[int]]) -> list[Any]:
    """Draw each kind of mark as a row of ticks along the bottom, below all curves."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * len(marks) * (high - low), high)
    return [
        axes.plot(
            list(steps),
            [0.03 + 0.05 * row] * len(steps),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="|",
            markersize=7,
            color=GREYS[row % len(GREYS)],
        )[0]
        for row, steps in enumerate(marks.values())
    ]
