"""What happens in a task, from its start to its end."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes

_STEPS = 12  # of the drawing


def task(colours: Colours) -> Figure:
    """Draw two tasks as a line of optimizer steps, and what is done beside it."""
    figure, axes = one_axes(9.2, 4.1, blank=True)
    axes.set_xlim(-0.9, 2 * _STEPS + 3.6)
    axes.set_ylim(-3.7, 3.3)
    for number, start in enumerate((0.0, _STEPS + 2.6)):
        _draw_task(axes, colours, start, ("task 0", "task 1")[number])
    axes.annotate(
        "decides how\nlater tasks\nare merged",
        (_STEPS + 0.6, -1.9),
        (_STEPS + 3.0, -1.9),
        ha="left",
        va="center",
        arrowprops={"arrowstyle": "<-", "color": colours.merged},
        color=colours.merged,
    )
    return figure


def _draw_task(axes: Axes, colours: Colours, start: float, name: str) -> None:
    end = start + _STEPS
    axes.plot([start, end], [0, 0], color=colours.text, linewidth=1)
    steps = range(1, _STEPS + 1)
    axes.plot([start + s for s in steps], [0] * _STEPS, "|", color=colours.new, markersize=9)
    axes.text(start + _STEPS / 2, 3.0, name, ha="center", weight="bold")
    axes.text(start + _STEPS / 2, -0.75, "optimizer steps", ha="center", color=colours.new)
    axes.plot(start, 0, "o", color=colours.old, markersize=9)
    axes.text(
        start,
        1.75,
        "start:\nsnapshot of\nthe weights",
        ha="left",
        va="center",
        color=colours.old,
    )
    axes.annotate("", (start, 0.25), (start, 0.95), arrowprops=_arrow(colours.old))
    for step in (4, 8):
        axes.plot(start + step, 0, "D", color=colours.merged, markersize=7)
    axes.text(
        start + 6,
        1.45,
        "every:\nmerge\nin the loop",
        ha="center",
        va="center",
        color=colours.merged,
    )
    for step in (4, 8):
        axes.annotate("", (start + step, 0.3), (start + 6, 0.75), arrowprops=_arrow(colours.merged))
    axes.plot(end, 0, "D", color=colours.merged, markersize=10)
    axes.text(
        end + 0.3, 1.75, "end:\nmerge by\nend_rule", ha="right", va="center", color=colours.merged
    )
    axes.annotate("", (end, 0.35), (end, 0.95), arrowprops=_arrow(colours.merged))
    axes.text(
        end + 0.3,
        -1.9,
        "measured on the\nlast batches,\nwhich are then\nforgotten",
        ha="right",
        va="center",
        color=colours.merged,
    )


def _arrow(colour: str) -> dict[str, object]:
    return {"arrowstyle": "->", "color": colour}
