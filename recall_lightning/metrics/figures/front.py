"""The front of a merge at a task's end: what was known before against what the task has learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recall_lightning.metrics.figures.labels import Label, write_labels
from recall_lightning.metrics.figures.style import COLOURS, TEXT, longest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Point = Mapping[str, Any]

_SHARE = "share of the task's gain that is left (%)"
_LEAST, _MOST = -5.0, 105.0  # per cent of it; what lies beyond is drawn there
_MARGIN = 2.0
_LINE, _MADE, _ENDS = COLOURS[0], COLOURS[1], "0.3"
_POINT, _END, _RING = 5.0, 7.0, 14.0  # sizes of markers in points


def front_figure(
    points: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    live_divergence: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the merges that were tried at a task's end, and the one that was made.

    Where divergences are known, they are drawn over the share of the task's gain that is left, from
    the live weights to the snapshot, which has none of either. Otherwise that share is drawn over
    ``keep``. Points with a number that is not finite are left out.

    Args:
        points: The merges that were tried, each with ``keep``, how many times the old counted
            against the new; ``plasticity``, the share of the task's gain that it left; and
            ``divergence`` from the snapshot's predictions, in nats a prediction, or None in every
            point.
        chosen: The merge that was made, of the same form.
        live_divergence: Divergence of the live weights; None leaves them out.
        title: Title of the figure.

    Returns:
        The figure. Shares outside of -5 to 105 % lie at its border.

    Raises:
        ValueError: If there are no points.

    Example:
        >>> points = [
        ...     {"keep": 0.1, "plasticity": 0.9, "divergence": 0.5},
        ...     {"keep": 1.0, "plasticity": 0.5, "divergence": 0.1},
        ... ]
        >>> figure = front_figure(points, chosen=points[0], live_divergence=0.8)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['merged: 90 % left, keep 0.1', 'live weights', 'snapshot', 'keep 1']
    """
    from matplotlib.figure import Figure

    if not points:
        raise ValueError("`points` is empty: pass the merges that were tried.")
    figure = Figure(figsize=(max(6.5, 0.8 + longest([title or ""])), 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)
    if title is not None:
        axes.set_title(title, fontsize=TEXT, parse_math=False)
    if all(point.get("divergence") is None for point in points):
        tried, made = _drawable(points, "plasticity"), _drawable([chosen], "plasticity")
        labels = _draw_over_keep(axes, tried, made)
    else:
        names = ("plasticity", "divergence")
        tried, made = _drawable(points, *names), _drawable([chosen], *names)
        labels = _draw_over_share(axes, tried, made, live_divergence)
    write_labels(figure, axes, labels)
    return figure


def _draw_over_keep(axes: Axes, tried: Sequence[_Point], made: Sequence[_Point]) -> list[Label]:
    axes.set_xscale("log")
    axes.set_xlabel("keep: how many times the old counts against the new")
    axes.set_ylabel(_SHARE)
    axes.set_ylim(_LEAST - _MARGIN, _MOST + _MARGIN)
    _draw_line(axes, [(point["keep"], _share(point)) for point in tried])
    return [_draw_made(axes, point, (point["keep"], _share(point))) for point in made]


def _draw_over_share(
    axes: Axes, tried: Sequence[_Point], made: Sequence[_Point], live_divergence: float | None
) -> list[Label]:
    live: _Point = {"keep": 1, "plasticity": 1, "divergence": live_divergence}
    snapshot: _Point = {"keep": 1, "plasticity": 0, "divergence": 0}
    ends = {"live weights": _drawable([live], "divergence"), "snapshot": [snapshot]}
    points = [*ends["live weights"], *tried, snapshot]

    axes.set_xlabel(_SHARE)
    axes.set_ylabel("divergence from the snapshot (nats a prediction)")
    axes.set_xlim(_LEAST - _MARGIN, _MOST + _MARGIN)
    # not to be stretched by a merge that broke the model
    usual = [point for point in points if _LEAST <= 100 * point["plasticity"] <= _MOST]
    top = max(point["divergence"] for point in [*usual, *made]) or 1
    axes.set_ylim(-0.08 * top, 1.1 * top)

    _draw_line(axes, [(_share(point), point["divergence"]) for point in points])
    labels = [_draw_made(axes, point, (_share(point), point["divergence"])) for point in made]
    for name, known in ends.items():
        for end in known:
            place = (_share(end), end["divergence"])
            axes.plot(*place, "o", markersize=_END, color=_ENDS, markerfacecolor="white")
            labels.append(Label(name, place, _END, {"color": _ENDS}, needed=True))
    labels += [
        Label(_keep(point), (_share(point), point["divergence"]), _POINT, {"color": _LINE})
        for point in tried
        if point["keep"] not in [other["keep"] for other in made]
    ]
    return labels


def _draw_line(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    xs, ys = [x for x, _ in places], [y for _, y in places]
    axes.plot(xs, ys, marker="o", markersize=_POINT, linewidth=1.6, color=_LINE)


def _draw_made(axes: Axes, point: _Point, place: tuple[float, float]) -> Label:
    """Draw a ring around the merge that was made, and return its label."""
    axes.plot(*place, "o", markersize=_POINT, color=_MADE)
    axes.plot(*place, "o", markersize=_RING, color=_MADE, fillstyle="none", markeredgewidth=2)
    text = f"merged: {100 * point['plasticity']:.0f} % left, {_keep(point)}"
    return Label(text, place, _RING, {"color": _MADE, "weight": "bold"}, needed=True)


def _drawable(points: Sequence[_Point], *names: str) -> list[_Point]:
    """The points by keep, without those where it or one of these numbers is not finite."""

    def drawable(point: _Point) -> bool:
        numbers = [point.get(name) for name in ("keep", *names)]
        known = all(number is not None and math.isfinite(number) for number in numbers)
        return known and point["keep"] > 0

    return sorted(filter(drawable, points), key=lambda point: point["keep"])


def _share(point: _Point) -> float:
    """What is left of the gain in per cent, as it is drawn."""
    return min(max(100 * point["plasticity"], _LEAST), _MOST)


def _keep(point: _Point) -> str:
    two_digits = float(f"{point['keep']:.2g}")
    return f"keep {two_digits:g}"
