"""Stability against plasticity: one point a row of the comparison, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall_lightning.compare.results import Summary
from recall_lightning.metrics.figures import save
from recall_lightning.metrics.figures.labels import Label, write_labels
from recall_lightning.metrics.figures.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D")  # more methods than colours go on with the next
_TEXT, _POINT = 8.5, 7.0  # points
_RING = 4.0  # that a marker below another is larger


def pareto_front(
    plasticity: Sequence[float], forgetting: Sequence[float], higher_is_better: bool
) -> list[int]:
    """Return which points no other point beats in both, by rising plasticity.

    Args:
        plasticity: In the unit of the score.
        forgetting: Less is better.
        higher_is_better: Direction of the score, and so of the plasticity.

    Example:
        >>> pareto_front([0.9, 0.8, 0.7, 0.6], [0.5, 0.1, 0.3, 0.05], higher_is_better=True)
        [3, 1, 0]
    """
    sign = 1 if higher_is_better else -1
    points = [(sign * p, -f) for p, f in zip(plasticity, forgetting, strict=True)]

    def beaten(point: tuple[float, float]) -> bool:
        return any(o != point and o[0] >= point[0] and o[1] >= point[1] for o in points)

    front = [i for i, point in enumerate(points) if not beaten(point)]
    return sorted(front, key=lambda i: (plasticity[i], forgetting[i]))


def pareto_figure(
    summaries: Sequence[Summary], score_name: str, higher_is_better: bool
) -> Figure | None:
    """Draw forgetting over plasticity, with 95 % intervals.

    Methods that need old data are drawn hollow, and the Pareto front is that of the others. The
    points of a sweep are connected. A point on another lies in a ring.

    Args:
        summaries: One a point; without plasticity or forgetting it is left out.
        score_name: What the scores are, for the axes.
        higher_is_better: Their direction.

    Returns:
        The figure; None without any point.
    """
    from matplotlib.figure import Figure

    rows = [r for r in summaries if r.value("plasticity").count and r.value("forgetting").count]
    if not rows:
        return None
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    looks = {name: _look(i) for i, name in enumerate(dict.fromkeys(map(_family, rows)))}
    _draw_sweeps(axes, rows, looks)
    for index, row in enumerate(rows):
        hidden_by = sum(_place(other) == _place(row) for other in rows[index + 1 :])
        _draw_point(axes, row, looks[_family(row)], _POINT + hidden_by * _RING)
    own = [row for row in rows if not row.needs_old_data]
    places = [_place(row) for row in own]
    front = pareto_front([x for x, _ in places], [y for _, y in places], higher_is_better)
    xs, ys = [places[i][0] for i in front], [places[i][1] for i in front]
    axes.plot(xs, ys, linestyle=(0, (4, 3)), color="0.6", linewidth=1, zorder=1)
    toward = "higher is better →" if higher_is_better else "← lower is better"
    axes.set_xlabel(f"plasticity: {score_name} right after each task's training ({toward})")
    axes.set_ylabel(f"forgetting: {score_name} lost since a task's own training (← less is better)")
    _set_limits(axes, rows)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    has_front = len(set(zip(xs, ys, strict=True))) > 1
    _draw_legend(figure, has_front, any(row.needs_old_data for row in rows), own != [])
    write_labels(figure, axes, [_label(row, looks[_family(row)]["color"]) for row in rows])
    return figure


def write_pareto(
    path: Path, summaries: Sequence[Summary], score_name: str, higher_is_better: bool
) -> None:
    """Write the figure as a PNG file, if there is a point to draw."""
    figure = pareto_figure(summaries, score_name, higher_is_better)
    if figure is not None:
        save(figure, path)


def _family(row: Summary) -> str:
    """What shares a colour: the points of a sweep, and every other row alone."""
    return row.method if row.swept else row.label


def _look(index: int) -> dict[str, Any]:
    marker = _MARKERS[index // len(COLOURS) % len(_MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker}


def _place(row: Summary) -> tuple[float, float]:
    return row.value("plasticity").mean, row.value("forgetting").mean


def _half_widths(row: Summary) -> tuple[float, float]:
    """Half widths of both intervals; 0 where a single run has none."""
    widths = (row.value(name).half_width for name in ("plasticity", "forgetting"))
    x, y = (0.0 if math.isnan(width) else width for width in widths)
    return x, y


def _draw_point(axes: Axes, row: Summary, look: dict[str, Any], size: float) -> None:
    (x, y), (x_width, y_width) = _place(row), _half_widths(row)
    axes.errorbar(
        x,
        y,
        xerr=x_width or None,
        yerr=y_width or None,
        markersize=size,
        markerfacecolor="white" if row.needs_old_data else look["color"],
        markeredgewidth=1.5,
        elinewidth=0.9,
        alpha=0.95,
        zorder=3,
        **look,
    )


def _draw_sweeps(axes: Axes, rows: Sequence[Summary], looks: dict[str, dict[str, Any]]) -> None:
    for name in looks:
        swept = [_place(row) for row in rows if row.swept and _family(row) == name]
        if len(swept) > 1:
            xs, ys = zip(*swept, strict=True)
            axes.plot(xs, ys, color=looks[name]["color"], linewidth=1.4, alpha=0.5, zorder=2)


def _draw_legend(figure: Figure, has_front: bool, has_hollow: bool, has_filled: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if has_front:
        handles.append(Line2D([], [], color="0.6", linestyle="--", label="Pareto front"))
    point = {"linestyle": "none", "marker": "o", "markersize": _POINT, "color": "0.3"}
    if has_hollow:
        hollow = Line2D([], [], markerfacecolor="white", label="needs old data", **point)  # type: ignore[arg-type]
        handles.append(hollow)
        if has_filled:
            handles.append(Line2D([], [], label="reads the new task alone", **point))  # type: ignore[arg-type]
    if handles:
        figure.legend(
            handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=_TEXT
        )


def _label(row: Summary, colour: str) -> Label:
    from matplotlib.colors import to_rgb

    darker = [0.75 * part for part in to_rgb(colour)]
    look = {"color": darker, "fontsize": _TEXT}
    return Label(row.label, _place(row), _POINT, look, needed=True)


def _set_limits(axes: Axes, rows: Sequence[Summary]) -> None:
    """Show all points and their intervals, but no more than thrice the points' range.

    Of two seeds an interval is so wide that the points would fall together.
    """
    for axis, name in enumerate(("xlim", "ylim")):
        centres = [_place(row)[axis] for row in rows]
        bars = [_half_widths(row)[axis] for row in rows]
        low, high = min(centres), max(centres)
        spread = (high - low) or max(bars) or 0.1 * abs(high) or 0.1
        lowest = min(c - bar for c, bar in zip(centres, bars, strict=True))
        highest = max(c + bar for c, bar in zip(centres, bars, strict=True))
        lowest, highest = max(lowest, low - spread), min(highest, high + spread)
        margin = 0.12 * (highest - lowest) or 0.12 * spread
        axes.set(**{name: (lowest - margin, highest + margin)})
