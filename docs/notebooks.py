"""Makes notebooks of three of the gallery's examples: ``make notebooks``."""

import copy
from pathlib import Path
from typing import Any

from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
from sphinx_gallery.notebook import jupyter_notebook, save_notebook
from sphinx_gallery.py_source_parser import split_code_and_text_blocks

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    ROOT / "examples" / "start" / "plot_first_task_matrix.py",
    ROOT / "examples" / "rules_and_methods" / "plot_plasticity_front.py",
    ROOT / "examples" / "operating" / "plot_limits_and_rollback.py",
]
FIRST_CELL = "%matplotlib inline"  # shows figures that belong to no pyplot, too


def notebook_of(script: Path) -> dict[str, Any]:
    """Return a notebook with the cells of an example, by the gallery's own converter."""
    _, blocks = split_code_and_text_blocks(str(script))
    settings = copy.deepcopy(DEFAULT_GALLERY_CONF) | {"first_notebook_cell": FIRST_CELL}
    return dict(jupyter_notebook(blocks, settings, str(script.parent)))


def place_of(script: Path) -> Path:
    """Return where an example's notebook lies."""
    return ROOT / "notebooks" / f"{script.stem.removeprefix('plot_')}.ipynb"


if __name__ == "__main__":
    (ROOT / "notebooks").mkdir(exist_ok=True)
    for script in SCRIPTS:
        save_notebook(notebook_of(script), place_of(script))
