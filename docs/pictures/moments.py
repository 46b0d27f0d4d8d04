"""What the second moments of a layer's inputs say."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from docs.pictures.style import Colours, one_axes

_COVARIANCE = np.array([[1.0, 0.85], [0.85, 0.9]])


def moments(colours: Colours) -> Figure:
    """Draw inputs of a layer, their moments as an ellipse, and its two directions."""
    figure, axes = one_axes(6.0, 4.2)
    inputs = np.random.default_rng(0).multivariate_normal(np.zeros(2), _COVARIANCE, 250)
    second = inputs.T @ inputs / len(inputs)
    axes.plot(*inputs.T, ".", color=colours.old, alpha=0.55, markersize=4)
    sizes, directions = np.linalg.eigh(second)
    widths = 2 * np.sqrt(sizes)
    angle = np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))
    ellipse = Ellipse((0, 0), 2 * widths[1], 2 * widths[0], angle=angle, fill=False)
    ellipse.set(edgecolor=colours.text, linewidth=1.4)
    axes.add_patch(ellipse)
    long, short = directions[:, 1] * np.sign(directions[0, 1]), directions[:, 0]
    short = short * np.sign(short[1])
    for arrow, colour in ((2 * long, colours.old), (1.4 * short, colours.new)):
        axes.annotate("", arrow, (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2})
    axes.text(
        1.5,
        -0.9,
        "old inputs lie along this:\nkeep what the layer\ndoes with them",
        color=colours.old,
        va="center",
    )
    axes.text(
        -1.3,
        1.5,
        "few lie along this:\nfree for the new task",
        color=colours.new,
        ha="center",
        va="bottom",
    )
    axes.set_xlim(-3.2, 4.4)
    axes.set_ylim(-2.9, 3.3)
    axes.set_aspect("equal")
    axes.set_xlabel("one input of the layer")
    axes.set_ylabel("another")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure
