"""Names written beside points, where they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from recall_lightning.metrics.figures.style import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

_DISTANCES = (3, 10, 19, 30, 44, 60, 78, 98, 120, 145)  # points, from what a label names
_ANGLES = tuple(22.5 + 22.5 * (step // 2 + 1) * (-1) ** step for step in range(16))  # degrees
_FAR = 12.0  # points, from where on a line leads to what a label names


class Label(NamedTuple):
    """What is to be written beside a point.

    Attributes:
        text: What it says.
        point: What it is about, in data.
        size: Of the point's marker, in points.
        look: Properties of the text.
        needed: Whether it is written even where it covers something; if not, it is left out there.
    """

    text: str
    point: tuple[float, float]
    size: float
    look: dict[str, Any]
    needed: bool = False


def write_labels(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Write labels, the most important first, clear of lines, error bars, markers and each other.

    One that is needed may lie further off, with a thin line to its point. The limits of the axes
    must be set before, and the layout stays as it is from here on.
    """
    figure.draw_without_rendering()  # from here on, places in pixels are known
    figure.set_layout_engine("none")
    pixels = figure.dpi / 72
    room, paths = axes.get_window_extent(), _paths(axes)
    markers = _markers(axes, pixels)
    written: list[Bbox] = []

    def covered(box: Bbox, leader: Path) -> int:
        outside = box.x0 < room.x0 or box.y0 < room.y0 or box.x1 > room.x1 or box.y1 > room.y1
        crossed = sum(path.intersects_bbox(box, filled=False) for path in paths)
        crossed += sum(leader.intersects_bbox(other) for other in written)
        illegible = outside or any(map(box.overlaps, written))
        return 100 * illegible + 2 * sum(map(box.overlaps, markers)) + crossed

    for label in labels:
        text = axes.annotate(
            label.text,
            label.point,
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            parse_math=False,
            zorder=4,
            **{"fontsize": SMALL, **label.look},
        )
        point, size = _around(axes, label.point, 0), text.get_window_extent()
        places = list(_places(point, size, label, pixels))
        leaders = [_leader(point, place) for place in places]
        costs = [covered(*each) for each in zip(places, leaders, strict=True)]
        if min(costs) and not label.needed:
            text.remove()
            continue
        best = costs.index(min(costs))
        place, leader = places[best], leaders[best]
        x, y = (place.x0 - point.x0) / pixels, ((place.y0 + place.y1) / 2 - point.y0) / pixels
        text.set_position((x, y))
        written.append(place.padded(2 * pixels))
        ends: Any = leader.vertices
        if math.dist(*ends) > (label.size / 2 + _FAR) * pixels:
            paths.append(leader)
            xs, ys = axes.transData.inverted().transform(ends).T
            look = {"color": label.look["color"], "linewidth": 0.5, "alpha": 0.7, "zorder": 2}
            axes.plot(xs, ys, scalex=False, scaley=False, **look)


def _around(axes: Axes, point: Sequence[float], size: float) -> Bbox:
    """Return what a marker covers, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(point)
    return Bbox.from_bounds(x - size / 2, y - size / 2, size, size)


def _markers(axes: Axes, pixels: float) -> list[Bbox]:
    found = []
    for line in axes.lines:
        if line.get_marker() not in (None, "", " ", "None", "none"):
            points: Any = line.get_xydata()
            found += [_around(axes, point, line.get_markersize() * pixels) for point in points]
    return found


def _paths(axes: Axes) -> list[Path]:
    """Return lines, and the bars of errors, in pixels."""
    from matplotlib.collections import LineCollection

    bars = [each for each in axes.collections if isinstance(each, LineCollection)]
    drawn = [(line.get_transform(), line.get_path()) for line in axes.lines]
    drawn += [(bar.get_transform(), path) for bar in bars for path in bar.get_paths()]
    return [transform.transform_path(path) for transform, path in drawn]


def _places(point: Bbox, size: Bbox, label: Label, pixels: float) -> Iterator[Bbox]:
    """Give places for a text, the nearest first, in pixels.

    The text's side, or corner, that looks at the point lies on a circle around it. The name of one
    among many points, that is not needed, must lie next to it.
    """
    from matplotlib.transforms import Bbox

    for distance in _DISTANCES if label.needed else _DISTANCES[:1]:
        radius = (label.size / 2 + distance) * pixels
        for angle in map(math.radians, _ANGLES):
            cos, sin = math.cos(angle), math.sin(angle)
            left = point.x0 + radius * cos - size.width * (1 - cos) / 2
            bottom = point.y0 + radius * sin - size.height * (1 - sin) / 2
            yield Bbox.from_bounds(left, bottom, size.width, size.height)


def _leader(point: Bbox, box: Bbox) -> Path:
    """Return the line from a point to what is nearest of a text, in pixels."""
    from matplotlib.path import Path

    x, y = point.x0, point.y0
    return Path([(x, y), (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))])
