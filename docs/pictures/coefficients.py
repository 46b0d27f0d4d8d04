"""How much of the snapshot a weight takes, over what a rule decides by."""

import numpy as np
from matplotlib.figure import Figure

from docs.pictures.style import Colours, one_axes


def importance_curve(colours: Colours) -> Figure:
    """Draw λF / (1 + λF) over F."""
    figure, axes = one_axes(5.6, 3.0)
    importance = np.geomspace(1e-2, 1e3, 200)
    for scale, colour in ((0.02, colours.new), (0.1, colours.merged), (0.5, colours.old)):
        weight = scale * importance / (1 + scale * importance)
        axes.plot(importance, weight, color=colour, label=f"λ = {scale:g}")
    axes.legend(frameon=False)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("F, importance to earlier tasks (mean 1)")
    axes.set_ylabel("w, the snapshot's weight")
    return figure


def softmax_curve(colours: Colours) -> Figure:
    """Draw the snapshot's weight of two models over the similarity of hidden states."""
    figure, axes = one_axes(5.6, 3.0)
    similarity = np.linspace(0, 1, 200)
    for temperature, colour in ((0.3, colours.new), (1.0, colours.merged), (3.0, colours.old)):
        weight = 1 / (1 + np.exp((1 - similarity) / temperature))
        axes.plot(similarity, weight, color=colour)
        axes.text(0.02, weight[0] + 0.03, f"τ = {temperature:g}", color=colour, va="bottom")
    axes.set_ylim(0, 0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("S, similarity of a block's hidden states")
    axes.set_ylabel("w, the snapshot's weight")
    return figure
