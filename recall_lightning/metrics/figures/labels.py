"""Names written beside points, where they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from recall_lightning.metrics.figures.style import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_SIDES = ((-1, 1), (1, -1), (1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
_DISTANCES = (1.0, 2.0, 3.5)  # times the size of the point


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


def write_labels(figure: Figure, axes: Axes, labels: Sequence[Label], line: Line2D) -> None:
    """Write labels, the most important first, beside a line with points.

    The limits of the axes must be set before.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # from here on, places in pixels are known
    path = axes.transData.transform_path(line.get_path())
    pixels = figure.dpi / 72
    room = axes.get_window_extent()
    on_line: Any = line.get_xydata()
    points = [(point, line.get_markersize()) for point in on_line]
    taken = []
    for point, size in [*points, *((label.point, label.size) for label in labels)]:
        (x, y), radius = axes.transData.transform(point), size / 2 * pixels
        taken.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))

    def covered(box: Bbox) -> int:
        outside = box.x0 < room.x0 or box.y0 < room.y0 or box.x1 > room.x1 or box.y1 > room.y1
        crossed = path.intersects_bbox(box, filled=False)
        return 10 * outside + 2 * sum(map(box.overlaps, taken)) + crossed

    for label in labels:
        text = axes.annotate(
            label.text,
            label.point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=SMALL,
            parse_math=False,
            zorder=4,
            **label.look,
        )
        # the name of one among many points must lie next to it
        distances = _DISTANCES if label.needed else _DISTANCES[:1]
        places = list(product(distances, _SIDES))
        costs = [covered(_moved(text, label.size, *place)) for place in places]
        if min(costs) and not label.needed:
            text.remove()
            continue
        best = places[costs.index(min(costs))]
        taken.append(_moved(text, label.size, *best).padded(2 * pixels))


def _moved(text: Annotation, size: float, distance: float, side: tuple[int, int]) -> Bbox:
    """Move a text to a side of its point, and return what it covers in pixels."""
    x, y = side
    offset = (0.5 * size + 1) * distance
    text.set_position((offset * x, offset * y))
    text.set(
        ha={-1: "right", 0: "center", 1: "left"}[x],
        va={-1: "top", 0: "center", 1: "bottom"}[y],
    )
    return text.get_window_extent()
