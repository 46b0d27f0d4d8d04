"""Draw the README's and the site's pictures from runs that ``recall-lightning compare`` made.

    python docs/images/draw.py forgetting runs/demo docs/images/forgetting.png
    python docs/images/draw.py front runs/plasticity docs/images/plasticity.png

The first puts the curves of fine-tuning beside those of RECALL; the second draws what a sweep of
``recall.plasticity`` learned against what it forgot. Each page names the command of its runs.
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recall_lightning.metrics.figures.style import COLOURS, line_style

TITLES = {"finetune": "fine-tuning", "recall": "RECALL"}


def forgetting(runs: Path) -> Figure:
    """Draw the held-out loss of every task over training, a panel a method, first seed."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (method, title) in zip(panels, TITLES.items(), strict=True):
        record = json.loads((runs / method / "seed_0" / "task_matrix.json").read_text())
        steps = [one["step"] for one in record["measurements"]]
        for task, name in enumerate(record["tasks"]):
            scores = [one["scores"][task] for one in record["measurements"]]
            panel.plot(steps, scores, marker=".", label=name, **line_style(task))
        for step, _ in record["boundaries"]:
            panel.axvline(step, color="0.8", linewidth=0.8, zorder=0)
        panel.set_title(title, loc="left")
        panel.set_xlabel("optimizer step (grey: a task starts)")
        _plain(panel)
    panels[0].set_ylabel(f"{record['monitor']}, lower is better")
    panels[1].legend(frameon=False)
    return figure


def front(runs: Path) -> Figure:
    """Draw what was learned against what was forgotten: by fine-tuning, and by the sweep."""
    points: dict[str, list[tuple[float, float]]] = {}
    with (runs / "results.csv").open() as file:
        for row in csv.DictReader(file):
            points.setdefault(row["label"], []).append(
                (float(row["plasticity"]), float(row["forgetting"]))
            )
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    means = {label: tuple(map(mean, zip(*found, strict=True))) for label, found in points.items()}
    swept = {label: point for label, point in means.items() if "plasticity=" in label}
    axes.plot(*zip(*swept.values(), strict=True), marker="o", color=COLOURS[0])
    axes.plot(*means["finetune"], marker="s", color=COLOURS[1])
    named = {label.partition("=")[2]: point for label, point in swept.items()}
    for name, point in (named | {"fine-tuning": means["finetune"]}).items():
        axes.annotate(name, point, xytext=(-6, 6), textcoords="offset points", ha="right")
    axes.set_xlabel("plasticity: score on each task right after its training")
    axes.set_ylabel("forgetting, lower is better")
    axes.margins(0.12)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93", linewidth=0.8)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    kind, runs, out = sys.argv[1:]
    {"forgetting": forgetting, "front": front}[kind](Path(runs)).savefig(out, dpi=140)
