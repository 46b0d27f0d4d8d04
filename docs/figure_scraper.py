"""Shows figures that belong to no pyplot: those of recall_lightning, where a cell ends with one."""

from typing import Any
from weakref import WeakSet

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_shown: WeakSet[Figure] = WeakSet()


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a cell ends with, as a notebook shows it.

    Args:
        block: The cell.
        block_vars: Of the gallery: the example's names, and the paths for its next images.
        gallery_conf: The gallery's settings.

    Returns:
        What shows the figure, in reStructuredText; nothing where the cell ends with none.
    """
    value = block_vars["example_globals"].get("___")  # of the last cell that ended with a value
    if not isinstance(value, Figure) or hasattr(value, "number") or value in _shown:
        return ""
    _shown.add(value)
    path = next(block_vars["image_path_iterator"])
    value.savefig(path, dpi=100)
    return figure_rst([path], gallery_conf["src_dir"])
