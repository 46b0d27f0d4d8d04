"""Stability against plasticity: one point a row of the comparison, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall_lightning.compare.results import Summary
from recall_lightning.metrics.figures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours without their yellow; more methods go on with another marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D")
_TEXT = 8.5  # points
_DISTANCES = (9, 16, 25, 36, 50, 66, 84, 104, 126, 150)  # points, from a label to what it names


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
    points of a sweep are connected.

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
    for row in rows:
        _draw_point(axes, row, looks[_family(row)])
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
    _label(figure, axes, rows, looks)
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
    marker = _MARKERS[index // len(_COLOURS) % len(_MARKERS)]
    return {"color": _COLOURS[index % len(_COLOURS)], "marker": marker}


def _place(row: Summary) -> tuple[float, float]:
    return row.value("plasticity").mean, row.value("forgetting").mean


def _half_widths(row: Summary) -> tuple[float, float]:
    """Half widths of both intervals; 0 where a single run has none."""
    widths = (row.value(name).half_width for name in ("plasticity", "forgetting"))
    x, y = (0.0 if math.isnan(width) else width for width in widths)
    return x, y


def _draw_point(axes: Axes, row: Summary, look: dict[str, Any]) -> None:
    (x, y), (x_width, y_width) = _place(row), _half_widths(row)
    axes.errorbar(
        x,
        y,
        xerr=x_width or None,
        yerr=y_width or None,
        markersize=7,
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
    point = {"linestyle": "none", "marker": "o", "markersize": 7, "color": "0.3"}
    if has_hollow:
        hollow = Line2D([], [], markerfacecolor="white", label="needs old data", **point)  # type: ignore[arg-type]
        handles.append(hollow)
        if has_filled:
            handles.append(Line2D([], [], label="reads the new task alone", **point))  # type: ignore[arg-type]
    if handles:
        figure.legend(
            handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=_TEXT
        )


def _label(
    figure: Figure, axes: Axes, rows: Sequence[Summary], looks: dict[str, dict[str, Any]]
) -> None:
    """Write each row's label near its point, where it covers nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb

    FigureCanvasAgg(figure).draw()  # from here on, positions in pixels are known
    figure.set_layout_engine("none")
    unit = figure.dpi / 72  # pixels a point
    taken = [box for row in rows for box in _boxes_of(axes, row, 5 * unit)]
    taken += [box for line in axes.lines for box in _boxes_along(axes, line)]
    for row in rows:
        colour = [0.75 * part for part in to_rgb(looks[_family(row)]["color"])]
        text = axes.annotate(
            row.label,
            _place(row),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_TEXT,
            color=colour,
            parse_math=False,
            va="center",
            zorder=4,
        )
        box = _free_place(axes, text, taken, unit)
        x, y = axes.transData.transform(_place(row))
        text.set_position(((box.x0 - x) / unit, (box.y0 + box.height / 2 - y) / unit))
        taken.append(box)
        _draw_leader(axes, row, box, colour, 12 * unit)


def _free_place(axes: Axes, text: Any, taken: Sequence[Any], unit: float) -> Any:
    """Return the nearest box for a text that is free, or the one that covers least, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(text.xy)
    room, size = axes.get_window_extent(), text.get_window_extent()

    def cost(box: Any) -> float:
        outside = size.width * size.height - _overlap(box, room)
        return 10 * max(0.0, outside - 1e-6) + sum(_overlap(box, other) for other in taken)

    corners = _candidates(size.width, size.height, unit)
    boxes = [Bbox.from_bounds(x + a, y + b, size.width, size.height) for a, b in corners]
    return min(boxes, key=cost)  # the first of equals


def _candidates(width: float, height: float, unit: float) -> list[tuple[float, float]]:
    """Return lower left corners for a text around a point, in pixels, the nearest first."""
    found = []
    for distance, step in product(_DISTANCES, range(16)):
        angle = math.pi * (0.125 * (step // 2 + 1) * (-1) ** step + 0.125)
        cos, sin = math.cos(angle), math.sin(angle)
        # the text's side, or corner, that looks at the point lies on the circle
        left = unit * distance * cos - width * (1 - cos) / 2
        found.append((left, unit * distance * sin - height * (1 - sin) / 2))
    return found


def _boxes_of(axes: Axes, row: Summary, radius: float) -> list[Any]:
    """Return what a point and its error bars cover, in pixels."""
    from matplotlib.transforms import Bbox

    (x, y), (x_width, y_width) = _place(row), _half_widths(row)
    to_pixels = axes.transData.transform
    px, py = to_pixels((x, y))
    boxes = [Bbox.from_extents(px - radius, py - radius, px + radius, py + radius)]
    (left, bottom), (right, top) = to_pixels(
        [(x - x_width, y - y_width), (x + x_width, y + y_width)]
    )
    boxes.append(Bbox.from_extents(left, py - 1, right, py + 1))
    boxes.append(Bbox.from_extents(px - 1, bottom, px + 1, top))
    return boxes


def _boxes_along(axes: Axes, line: Any) -> list[Any]:
    """Return small boxes along a line, in pixels."""
    from matplotlib.transforms import Bbox

    points = axes.transData.transform(line.get_xydata())
    boxes = []
    for (ax, ay), (bx, by) in pairwise(points):
        steps = max(1, int(math.hypot(bx - ax, by - ay) / 4))
        for part in (step / steps for step in range(steps + 1)):
            x, y = ax + part * (bx - ax), ay + part * (by - ay)
            boxes.append(Bbox.from_extents(x - 2, y - 2, x + 2, y + 2))
    return boxes


def _overlap(a: Any, b: Any) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _draw_leader(axes: Axes, row: Summary, box: Any, colour: Sequence[float], least: float) -> None:
    """Connect a label with its point by a thin line, if it is far away."""
    x, y = axes.transData.transform(_place(row))
    end = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
    if math.hypot(end[0] - x, end[1] - y) > least:
        place = axes.transData.inverted().transform(end)
        xs, ys = zip(_place(row), place, strict=True)
        axes.plot(
            xs, ys, color=colour, linewidth=0.5, alpha=0.7, zorder=2, scalex=False, scaley=False
        )


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
