"""The pictures of the documentation, drawn when the site is built: one idea a file.

``python -m docs.pictures NAME FILE.svg`` draws one by itself.
"""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from docs.pictures.coefficients import importance_curve, softmax_curve
from docs.pictures.house import house
from docs.pictures.merges import merges
from docs.pictures.moments import moments
from docs.pictures.spring import spring
from docs.pictures.style import Colours
from docs.pictures.task import task

PICTURES: Mapping[str, Callable[[Colours], Figure]] = {
    "house": house,
    "importance_curve": importance_curve,
    "merges": merges,
    "moments": moments,
    "softmax_curve": softmax_curve,
    "spring": spring,
    "task": task,
}
"""What draws a picture, by its name."""
