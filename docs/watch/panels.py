"""Draw what panels of Weights & Biases show of a run, from what it has recorded offline.

Its arguments are the folder that the run was logged to, and the picture; see ``wandb.md``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recall_lightning.callbacks._trainer.wandb_history import rows_in

SUMMARIES = ("average", "forgetting", "plasticity")


def panel(
    axes: Axes, rows: list[dict[str, Any]], axis: str, title: str, wanted: Callable[[str], bool]
) -> None:
    """Draw the metrics whose names are wanted, over the one that they are logged with."""
    own = [row for row in rows if isinstance(row.get(axis), int | float)]
    names = {n for row in own for n, value in row.items() if isinstance(value, int | float)}
    for name in sorted(name for name in names if name != axis and wanted(name)):
        points = [(row[axis], row[name]) for row in own if name in row]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=axis)
    axes.legend(fontsize=6.5)
    axes.grid(color="0.92")


def main(folder: str, picture: str) -> None:
    """Draw the four panels of the one run below a folder."""
    (file,) = Path(folder).rglob("run-*.wandb")
    rows = list(rows_in(file))
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)

    def is_summary(name: str) -> bool:
        return name.removeprefix("continual/") in SUMMARIES

    def is_task(name: str) -> bool:
        head, _, rest = name.partition("/")
        return head == "continual" and rest.startswith("permuted")

    def is_coefficient(name: str) -> bool:
        return name.startswith("recall/coefficient/")

    def is_estimate(name: str) -> bool:
        return name.startswith("recall/divergence/")

    panel(first, rows, "continual/task", "what is left after each task", is_summary)
    panel(second, rows, "continual/task", "each task's score", is_task)
    panel(third, rows, "recall/step", "what the snapshot got in each merge", is_coefficient)
    panel(fourth, rows, "recall/step", "forgetting, estimated (nats a prediction)", is_estimate)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
