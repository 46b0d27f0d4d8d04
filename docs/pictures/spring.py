"""How far weights drift from a snapshot that they are merged with again and again."""

from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes

_INTERVALS, _STEPS = 8, 10


def spring(colours: Colours) -> Figure:
    """Draw the drift over intervals of equal progress, for two weights of the snapshot."""
    figure, axes = one_axes(6.4, 3.4)
    plain = [step / _STEPS for step in range(_INTERVALS * _STEPS + 1)]
    axes.plot(plain, plain, color=colours.new)
    axes.text(4.4, 4.9, "never merged", color=colours.new, ha="right")
    for weight, colour in ((0.25, colours.merged), (0.5, colours.old)):
        times, drift = [0.0], [0.0]
        for interval in range(_INTERVALS):
            times += [interval + 1, interval + 1]
            drift += [drift[-1] + 1, (1 - weight) * (drift[-1] + 1)]
        axes.plot(times, drift, color=colour)
        axes.axhline((1 - weight) / weight, color=colour, linestyle=":", linewidth=1)
        label = f"w = {weight:g}: settles at {(1 - weight) / weight:g}"
        axes.text(_INTERVALS + 0.1, drift[-1], label, color=colour, va="center")
    axes.set_xlim(0, _INTERVALS)
    axes.set_ylim(0, 6)
    axes.set_xlabel("merges")
    axes.set_ylabel("distance from the snapshot,\nin an interval's progress")
    return figure
