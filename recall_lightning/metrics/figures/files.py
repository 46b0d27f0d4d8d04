"""Figures as files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file, whole or not at all.

    The file appears under its name only once it is complete, so that what watches the folder never
    reads half an image. Missing folders are made; an existing file is replaced.

    Args:
        figure: The figure.
        path: Where to write, ending in ".png".

    Returns:
        The path written.

    Raises:
        ValueError: If ``path`` has another suffix.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from recall_lightning.metrics.figures import task_matrix_figure
        >>> figure = task_matrix_figure([[0.9]], ["cats"], "accuracy", True)
        >>> with TemporaryDirectory() as folder:
        ...     save(figure, f"{folder}/run/matrix.png").read_bytes()[1:4]
        b'PNG'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` is {str(path)!r}: figures are PNG files, end the name in '.png'.")
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_whole(path, image.getvalue())
    return path
