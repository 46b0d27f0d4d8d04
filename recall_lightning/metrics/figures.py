"""Figures of a continual run: the task matrix, the curves of every task, the merge coefficients.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to the caller: no window, no
pyplot, no state shared between figures. It goes to a logger as it is, or to a file by :func:`save`.
Arrays may be tensors on any device or nested sequences; NaN is a value that was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["coefficients_figure", "curves_figure", "save", "task_matrix_figure"]

_SMALL, _TEXT = 9, 10  # font sizes in points
_CHARACTER = 0.085  # inches: width of an average character at `_TEXT`, rounded up

# Okabe & Ito's colours, which stay apart under every colour blindness, without their yellow, which
# is too light for a line on white. More tasks than colours go on with another line style.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", ":")
_GREYS = ("0.15", "0.5", "0.7")
_COLOUR_MAP = "YlGnBu"


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
    scores = _array(matrix, "matrix", ndim=2)
    if row_names is None:
        before = ["before training"] if len(scores) == len(task_names) + 1 else []
        row_names = [*before, *(f"after {name}" for name in task_names)][: len(scores)]
    _check_names("row_names", row_names, scores, axis=0)
    _check_names("task_names", task_names, scores, axis=1)

    # Cells are as wide as the names if these are short and few; otherwise the names are turned.
    name_width = _longest(task_names)
    turned = name_width > (1.3 if len(task_names) <= 8 else 0.75)
    cell_width = 0.75 if turned else max(0.75, name_width)
    figure, axes = _heatmap_axes(
        scores,
        cell_size=(cell_width, 0.5),
        margins=(_longest(row_names), 0.75 * name_width if turned else 0.2),
        label=score_name,
    )
    low, high = _limits(scores)
    _heatmap(axes, scores, low, high, reverse=not higher_is_better)
    _annotate(axes, scores)
    _name_ticks(axes, row_names, task_names, turned=turned)
    axes.invert_yaxis()
    axes.set_xlabel("score on task")
    bar = _colour_bar(figure, axes, score_name)
    bar.set_title("better ↑", fontsize=_SMALL)
    if not higher_is_better:
        bar.invert_yaxis()
    return figure


def curves_figure(
    steps: Tensor | Sequence[int],
    scores: Tensor | Sequence[Any],
    task_names: Sequence[str],
    score_name: str,
    boundaries: Sequence[tuple[int, str]] = (),
    marks: Mapping[str, Sequence[int]] | None = None,
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

    x, y = _array(steps, "steps", ndim=1), _array(scores, "scores", ndim=2)
    if len(x) != len(y):
        raise ValueError(
            f"`steps` has {len(x)} entries and `scores` {len(y)} rows: pass one row for each step."
        )
    _check_names("task_names", task_names, y, axis=1)
    marks = marks or {}

    legend_names = [*task_names, *marks]
    width, height = 6.5, max(3.8, 1 + 0.23 * len(legend_names), _longest([score_name]))
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    handles = [
        axes.plot(x, y[:, task], marker="o", markersize=3.5, linewidth=1.6, **_line_style(task))[0]
        for task in range(y.shape[1])
    ]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(score_name, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    rise = _draw_boundaries(axes, boundaries, task_names, width)
    figure.set_size_inches(width + 1.5 + _longest(legend_names) + rise, height + 0.3 + rise)
    handles += _draw_marks(axes, marks)
    legend = figure.legend(handles, legend_names, loc="outside right upper", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


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
    values = _array(coefficients, "coefficients", ndim=2)
    columns = [f"{step:.0f}" for step in _array(steps, "steps", ndim=1)]
    _check_names("block_names", block_names, values, axis=0)
    _check_names("steps", columns, values, axis=1)

    few = max(values.shape) <= 12
    step_width = _longest(columns) + 0.1
    cell_width = (
        max(0.5, step_width) if len(columns) <= 12 else max(0.04, min(0.3, 10 / len(columns)))
    )
    figure, axes = _heatmap_axes(
        values,
        cell_size=(cell_width, 0.32 if few else 0.2),
        margins=(_longest(block_names) + 0.3, 0.2),
        label=label,
    )
    _heatmap(axes, values, vmin, vmax, grid=few)
    if few:
        _annotate(axes, values, decimals=2)
    _name_ticks(axes, block_names, columns, every=math.ceil(step_width / cell_width))
    axes.set_xlabel("merge at optimizer step")
    axes.set_ylabel("block, deepest at top")
    _colour_bar(figure, axes, label)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file, whole or not at all.

    The file appears under its name only once it is complete, so that what watches the folder never
    reads half an image. Missing folders are made; an existing file is replaced.

    Args:
        figure: The figure.
        path: Where to write, ending in ".png".

    Returns:
        The path written.

    Raises:
        ValueError: If ``path`` has another suffix.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> figure = task_matrix_figure([[0.9]], ["cats"], "accuracy", True)
        >>> with TemporaryDirectory() as folder:
        ...     save(figure, f"{folder}/run/matrix.png").read_bytes()[1:4]
        b'PNG'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` is {str(path)!r}: figures are PNG files, end the name in '.png'.")
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_whole(path, image.getvalue())
    return path


def _array(values: Tensor | Sequence[Any], name: str, ndim: int) -> Any:
    """A float64 NumPy array of the values, with a checked number of dimensions and no empty one."""
    tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if tensor.ndim != ndim or not tensor.numel():
        raise ValueError(
            f"`{name}` has shape {tuple(tensor.shape)}: pass {ndim} dimension(s), none empty."
        )
    return tensor.numpy()


def _check_names(name: str, names: Sequence[str], values: Any, axis: int) -> None:
    if len(names) != values.shape[axis]:
        raise ValueError(
            f"`{name}` has {len(names)} entries for {values.shape[axis]} "
            f"{('rows', 'columns')[axis]}: pass one for each."
        )


def _longest(names: Sequence[str]) -> float:
    """Width of the longest name in inches."""
    return _CHARACTER * max(len(name) for name in names)


def _finite(values: Any) -> list[float]:
    return [value for value in values.flat if math.isfinite(value)] or [0.0]


def _limits(values: Any) -> tuple[float, float]:
    """Lowest and highest finite value, or a range around it where there is but one."""
    low, high = min(_finite(values)), max(_finite(values))
    margin = 0.0 if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _heatmap_axes(
    values: Any, cell_size: tuple[float, float], margins: tuple[float, float], label: str
) -> tuple[Figure, Axes]:
    """Axes on a figure with room for cells, for the names left of and below them, and for a bar.

    Sizes are widths and heights in inches.
    """
    from matplotlib.figure import Figure

    rows, columns = values.shape
    width = max(1.6, cell_size[0] * columns)
    height = max(1.6, cell_size[1] * rows, _longest([label]))
    figure = Figure(
        figsize=(1.15 * width + margins[0] + 0.9, height + margins[1] + 0.6), layout="constrained"
    )
    return figure, figure.add_subplot()


def _heatmap(
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


def _annotate(axes: Axes, values: Any, decimals: int | None = None) -> None:
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
            fontsize=_SMALL,
            color=_ink_on(mesh.to_rgba(value)),
        )


def _decimals(values: Any) -> int:
    """Decimals that give the largest value three digits; -1 where it needs an exponent."""
    largest = max(map(abs, _finite(values))) or 1.0
    digits = math.floor(math.log10(largest)) + 1
    return -1 if digits > 5 or digits < -1 else max(0, 3 - max(digits, 0))


def _ink_on(colour: Any) -> str:
    """Black or white, whichever has more contrast with a colour by the measure of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "black" if luminance > 0.179 else "white"


def _name_ticks(
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


def _colour_bar(figure: Figure, axes: Axes, label: str) -> Axes:
    bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02, aspect=25)
    bar.set_label(label, parse_math=False)
    bar.outline.set_visible(False)
    return bar.ax


def _line_style(task: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[task % len(_COLOURS)],
        "linestyle": _LINE_STYLES[task // len(_COLOURS) % len(_LINE_STYLES)],
    }


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
        _longest([name]) * inch > gap for (_, name), gap in zip(boundaries, room, strict=True)
    )
    free = low
    for step, name in boundaries:
        colour = _line_style(task_names.index(name))["color"] if name in task_names else "0.3"
        axes.text(
            max(step, free),
            1.02,
            name,
            transform=axes.get_xaxis_transform(),
            color=[0.7 * part for part in to_rgb(colour)],
            fontsize=_SMALL,
            rotation=45 if turned else 0,
            rotation_mode="anchor",
            parse_math=False,
        )
        free = max(step, free) + 0.25 * inch  # names of close starts move apart
    return 0.7 * _longest([name for _, name in boundaries]) if turned else 0.0


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
            color=_GREYS[row % len(_GREYS)],
        )[0]
        for row, steps in enumerate(marks.values())
    ]
