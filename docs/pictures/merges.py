"""What kinds of merges can reach, between two weights that two tasks want elsewhere."""

import numpy as np
from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes

OLD, NEW = np.array([0.0, 0.0]), np.array([2.4, 1.7])  # the weights at start and end of the task
OLD_INPUTS = np.array([[1.0, 0.6], [0.6, 0.5]])  # second moments of each task's inputs
NEW_INPUTS = np.array([[0.4, -0.45], [-0.45, 1.0]])


def merges(colours: Colours) -> Figure:
    """Draw both tasks' losses, and where uniform, importance and subspace merges end."""
    figure, axes = one_axes(6.4, 4.6)
    x, y = np.meshgrid(np.linspace(-1.6, 4.0, 200), np.linspace(-1.5, 3.3, 200))
    points = np.stack([x, y], axis=-1)
    for centre, moments, colour in (
        (OLD, OLD_INPUTS, colours.old),
        (NEW, NEW_INPUTS, colours.new),
    ):
        levels = (0.1, 0.35, 0.8)
        axes.contour(x, y, loss(points - centre, moments), levels, colors=colour, linewidths=0.9)
    axes.plot(*OLD, "o", color=colours.old, markersize=9)
    axes.plot(*NEW, "o", color=colours.new, markersize=9)
    axes.annotate(
        "snapshot", OLD, (-8, -16), textcoords="offset points", color=colours.old, ha="right"
    )
    axes.annotate("live weights", NEW, (10, 4), textcoords="offset points", color=colours.new)
    axes.plot(*np.stack([OLD, NEW], axis=1), "--", color=colours.faint, linewidth=1)
    importances = np.geomspace(1e-2, 1e2, 200)[:, None] * np.diag(OLD_INPUTS) / np.diag(NEW_INPUTS)
    taken = importances / (1 + importances)
    axes.plot(*(taken * OLD + (1 - taken) * NEW).T, ":", color=colours.text, linewidth=1.4)
    path = np.stack([subspace(new_inputs) for new_inputs in np.geomspace(1e-2, 1e2, 200)])
    axes.plot(*path.T, color=colours.merged, linewidth=1.8)
    axes.plot(*subspace(1.0), "D", color=colours.merged, markersize=8)
    axes.annotate(
        "a number for all (dashed)\nor each weight (dotted)",
        (1.25, 0.89),
        (1.55, -0.75),
        ha="left",
        va="center",
        arrowprops={"arrowstyle": "->", "color": colours.faint},
    )
    axes.annotate(
        "a matrix",
        subspace(1.0),
        (8, -14),
        textcoords="offset points",
        color=colours.merged,
    )
    axes.set_xlabel("a weight")
    axes.set_ylabel("another weight of the same layer")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def loss(moved: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return what a task loses where weights have moved, ½ Δᵀ G Δ."""
    return np.einsum("...i,ij,...j->...", moved, moments, moved) / 2


def subspace(new_inputs: float) -> np.ndarray:
    """Return the weights of least old plus ``new_inputs`` times new loss."""
    both = OLD_INPUTS + new_inputs * NEW_INPUTS
    return np.linalg.solve(both, OLD_INPUTS @ OLD + new_inputs * NEW_INPUTS @ NEW)
