"""What all pictures have in common: colours of a light page and of a dark one, and their form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Colours:
    """Colours that can be told apart on a page.

    Attributes:
        name: ``"light"`` or ``"dark"``, which the page is.
        text: Of words and axes.
        faint: Of what stands behind.
        fill: Of areas.
        old: Of what was known before.
        new: Of the task that is trained.
        merged: Of what a merge gives.
    """

    name: str
    text: str
    faint: str
    fill: str
    old: str
    new: str
    merged: str

    def svg(self, draw: Callable[[Colours], Figure]) -> bytes:
        """Draw a picture; the same picture has the same bytes."""
        settings = {
            "svg.hashsalt": "recall_lightning",
            "font.size": 10,
            "text.color": self.text,
            "axes.edgecolor": self.text,
            "axes.labelcolor": self.text,
            "axes.facecolor": "none",
            "xtick.color": self.text,
            "ytick.color": self.text,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        with mpl.rc_context(settings):
            written = BytesIO()
            figure = draw(self)
            figure.savefig(
                written,
                format="svg",
                transparent=True,
                bbox_inches="tight",
                metadata={"Date": None},
            )
        return written.getvalue()


LIGHT = Colours(
    name="light",
    text="#222832",
    faint="#9aa3ad",
    fill="#eef1f4",
    old="#1f5fa8",
    new="#b3541e",
    merged="#2a7f4f",
)
DARK = Colours(
    name="dark",
    text="#ced6dd",
    faint="#6b7680",
    fill="#29313d",
    old="#7db3f0",
    new="#f0a05f",
    merged="#73d39c",
)


def one_axes(width: float, height: float, blank: bool = False) -> tuple[Figure, Axes]:
    """Return a figure and the one pair of axes in it.

    Args:
        width: In inches.
        height: In inches.
        blank: Whether the axes are for a drawing, and show nothing of themselves.
    """
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    if blank:
        axes.axis("off")
    return figure, axes
