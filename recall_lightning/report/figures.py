"""Figures of a run as SVG that lies in a page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from recall_lightning.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def curves(runs: Sequence[Run]) -> list[Figure | None]:
    """Draw each run's scores over training, those of one metric over one range of scores."""
    drawn = [_curves(run) if run.record.measurements else None for run in runs]
    for metric in {run.record.score_name for run in runs}:
        pairs = zip(runs, drawn, strict=True)
        axes = [each.axes[0] for run, each in pairs if each and run.record.score_name == metric]
        limits = [limit for each in axes for limit in each.get_ylim()]
        for each in axes:
            each.set_ylim(min(limits), max(limits))
    return drawn


def coefficients(run: Run) -> Figure | None:
    """Draw the merge coefficient of each block at each merge; None without any."""
    return _by_block(run.merges or [], "coefficient", "merge coefficient", 1.0)


def drift(run: Run) -> Figure | None:
    """Draw how far each block had gone from the snapshot before each merge; None if unknown."""
    values = [v for merge in run.merges or [] for v in merge.get("drift", {}).values()]
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    return _by_block(run.merges or [], "drift", "drift before the merge", most or 1.0)


def estimated_forgetting(run: Run) -> Figure | None:
    """Draw the estimate for the live and the merged weights at tasks' ends; None without any."""
    from recall_lightning.metrics.figures import curves_figure

    known = [merge for merge in run.merges or [] if merge.get("divergence")]
    if not known:
        return None
    names = {"live": "before the merge", "merged": "after the merge"}
    values = [[merge["divergence"].get(n, math.nan) for n in names] for merge in known]
    return curves_figure(
        [merge["step"] for merge in known],
        values,
        list(names.values()),
        "estimated forgetting (nats a prediction)",
        run.record.boundaries,
    )


def front(merge: Mapping[str, Any], name: str) -> Figure:
    """Draw the merges that were tried at a task's end, the one that was made marked."""
    from recall_lightning.recall.records import front_figure

    return front_figure(merge, name)


def inline_svg(draw: Figure, name: str, label: str) -> str:
    """Return a figure as an element of a page.

    Args:
        draw: The figure.
        name: Stands before all ids in it, which no two elements of a page may share.
        label: What it shows, for who does not see it.

    Example:
        >>> from recall_lightning.metrics.figures import task_matrix_figure
        >>> drawn = task_matrix_figure([[0.9]], ["cats"], "accuracy", True)
        >>> inline_svg(drawn, "matrix", 'the matrix of "cats"')[:59]
        '<svg role="img" aria-label="the matrix of &quot;cats&quot;"'
    """
    from matplotlib import rc_context

    written = StringIO()
    # text as text: searchable, and a tenth of the size; ids from the name make files repeatable
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw.savefig(written, format="svg", metadata=_NO_METADATA)
    svg = re.sub(r"<!--.*?-->\s*", "", written.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\sid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<style[^>]*>\*\{([^}]*)\}</style>", "", svg)  # would be of the whole page
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()


def _curves(run: Run) -> Figure:
    steps = [merge["step"] for merge in run.merges or []]
    return run.record.curves_figure({"merge": steps} if steps else {})


def _by_block(
    merges: Sequence[Mapping[str, Any]], what: str, label: str, most: float
) -> Figure | None:
    from recall_lightning.metrics.figures import coefficients_figure

    known = [merge for merge in merges if merge.get(what)]
    if not known:
        return None
    names = list(dict.fromkeys(name for merge in known for name in merge[what]))
    values = [[merge[what].get(name, math.nan) for merge in known] for name in names]
    return coefficients_figure(values, names, [m["step"] for m in known], label, vmax=most)
