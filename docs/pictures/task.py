"""What happens in a task, from its start to its end."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes

_STEPS = 12  # of the drawing
_BELOW = 9.0  # how far the second task lies below the first


def task(colours: Colours) -> Figure:
    """Draw two tasks as lines of optimizer steps, and what is done beside them."""
    figure, axes = one_axes(5.4, 5.0, blank=True)
    axes.set_xlim(-0.6, _STEPS + 0.6)
    axes.set_ylim(-_BELOW - 3.4, 3.2)
    for number in range(2):
        _draw_task(axes, colours, -_BELOW * number, f"task {number}")
    axes.annotate(
        "",
        (6.4, 3.3 - _BELOW),
        (8.8, -3.3),
        arrowprops=_arrow(colours.merged),
    )
    where = (4.4, -5.3)
    axes.text(*where, "decides how later\ntasks are merged", ha="center", color=colours.merged)
    return figure


def _draw_task(axes: Axes, colours: Colours, height: float, name: str) -> None:
    axes.plot([0, _STEPS], [height] * 2, color=colours.text, linewidth=1)
    steps = range(1, _STEPS + 1)
    axes.plot(steps, [height] * _STEPS, "|", color=colours.new, markersize=9)
    axes.plot(0, height, "o", color=colours.old, markersize=9)
    axes.plot([4, 8], [height] * 2, "D", color=colours.merged, markersize=7)
    axes.plot(_STEPS, height, "D", color=colours.merged, markersize=10)
    axes.text(0, height - 1.0, name, weight="bold")
    axes.text(3.4, height - 1.0, "optimizer steps", color=colours.new)
    start, loop, end = (
        "start:\nsnapshot of\nthe weights",
        "every:\nmerge\nin the loop",
        "end:\nlast merge",
    )
    axes.text(0, height + 1.0, start, color=colours.old)
    axes.text(_STEPS / 2, height + 1.0, loop, ha="center", color=colours.merged)
    axes.text(_STEPS + 0.3, height + 1.0, end, ha="right", color=colours.merged)
    for tip, tail in ((0, 0), (4, _STEPS / 2), (8, _STEPS / 2), (_STEPS, _STEPS)):
        colour = colours.merged if tip else colours.old
        ends = (tip, height + 0.3), (tail, height + 0.9)
        axes.annotate("", *ends, arrowprops=_arrow(colour))
    last = "measured on the last\nbatches, which are\nthen forgotten"
    axes.text(_STEPS + 0.3, height - 2.9, last, ha="right", color=colours.merged)


def _arrow(colour: str) -> dict[str, object]:
    return {"arrowstyle": "->", "color": colour}
