"""Figures of a continual run: its tasks, its merges, and what was known against what was learned.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to the caller: no window, no
pyplot, no state shared between figures. It goes to a logger as it is, or to a file by :func:`save`.
Arrays may be tensors on any device or nested sequences; NaN is a value that was not measured.
"""

from recall_lightning.metrics.figures.coefficients import coefficients_figure
from recall_lightning.metrics.figures.curves import curves_figure
from recall_lightning.metrics.figures.files import save
from recall_lightning.metrics.figures.front import front_figure
from recall_lightning.metrics.figures.task_matrix import task_matrix_figure

__all__ = [
    "coefficients_figure",
    "curves_figure",
    "front_figure",
    "save",
    "task_matrix_figure",
]
