"""The page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recall_lightning.report import figures
from recall_lightning.report.environment import environment
from recall_lightning.report.numbers import decimals_for, duration, shown
from recall_lightning.report.run import Run, distinct_names, read_run
from recall_lightning.report.words import (
    boundaries_found,
    cost,
    learned,
    left,
    lost,
    merge_seconds,
    refitted,
    score_decimals,
)
from recall_lightning.weights.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE_NAME = "report.html"
_MANY = 4  # runs, of which merges and environments are folded away
METRICS = ("average", "forgetting", "plasticity")
METRICS_NOTE = (
    "Average: score on all tasks at the end. Forgetting: how much worse earlier tasks are then "
    "than at their best since their training. Plasticity: score on each task right after its "
    "training."
)


@dataclass(frozen=True)
class Cell:
    """A score in a table.

    Attributes:
        text: How it is written.
        own: Whether it was measured right after the task's own training.
    """

    text: str
    own: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a header a column and a header a row.

    Attributes:
        caption: What it shows.
        columns: The headers of columns, that of the rows' headers first.
        rows: Headers of rows and the cells behind each.
        foot: A last row of another kind, or None.
        note: What is to be known for reading it.
        kind: ``"text"`` where the first three columns are words.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    foot: tuple[str, Sequence[Cell]] | None = None
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of an overview.

    Attributes:
        name: What it is called.
        label: What it shows, for who does not see it too.
        figure: The figure.
    """

    name: str
    label: str
    figure: Figure


@dataclass(frozen=True)
class Overview:
    """What stands before the runs: all of them, or more than those, in one table.

    Attributes:
        title: Of the page.
        table: A row a run, or a row several.
        pictures: Figures of all of them.
        notes: Sentences on which runs these are.
    """

    title: str
    table: Table
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


def write_report(folders: Sequence[Path], out: Path, beside: Path | None = None) -> None:
    """Write a report of one or several runs' folders, whole or not at all.

    Args:
        folders: Each with a ``task_matrix.json``.
        out: The file to write.
        beside: Another folder with a run's other files; see :func:`read_run`.

    Raises:
        ValueError: If a folder, or a file in it, is not what it should be.
        OSError: If something cannot be read or written.
    """
    names = distinct_names(folders)
    with damage_is_said():
        runs = [read_run(folder, name, beside) for folder, name in zip(folders, names, strict=True)]
        page = report_page(runs)
    write_whole(out, page)


@contextmanager
def damage_is_said() -> Iterator[None]:
    """Raise as a ValueError whatever comes of files that hold other things than a run's.

    Raises:
        ValueError: That.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            "a run's task_matrix.json, merges.json or config.yaml is damaged or of another version "
            f"({type(error).__name__}: {error}): write the report by the version that trained"
        ) from error


def report_page(runs: Sequence[Run], overview: Overview | None = None) -> str:
    """Return the page as text.

    Args:
        runs: What it is of, at least one.
        overview: What stands before them; by default a table of them, where they are several.

    Example:
        >>> from recall_lightning.metrics.record import TaskRecord
        >>> record = TaskRecord("val/acc", True, ["a", "b"], [[0.9, 0.1], [0.5, 0.8]])
        >>> page = report_page([Run("mine", record)])
        >>> page[:15], "it fell from 0.900 to 0.500" in page
        ('<!doctype html>', True)
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # all text is escaped: names of tasks and settings are the user's
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = figures.curves(runs)
    parts = [
        _run(run, f"run-{n}", own) for n, (run, own) in enumerate(zip(runs, drawn, strict=True))
    ]
    if overview is None and len(runs) > 1:
        overview = Overview(f"{len(runs)} runs", _summary(runs))
    title = f"{runs[0].name}: what was learned and lost" if overview is None else overview.title
    pictures = (
        []
        if overview is None
        else [
            _figure(each.figure, f"summary-{n}", each.name, each.label)
            for n, each in enumerate(overview.pictures)
        ]
    )
    template = pages.get_template("template.html")
    return template.render(
        title=title,
        runs=parts,
        overview=overview,
        pictures=pictures,
        folded=len(runs) > _MANY,
        now=environment(),
    )


def _run(run: Run, key: str, curves: Figure | None) -> dict[str, Any]:
    said = [
        ("Learned", learned(run.record)),
        ("Lost", lost(run.record, run.exceeded)),
        ("Left", left(run.record)),
        ("Cost", cost(run.record, run.merges)),
        ("Boundaries", boundaries_found(run.record)),
    ]
    label = f"Line chart: {run.record.score_name} on each task over all optimizer steps."
    return {
        "key": key,
        "name": run.name,
        "method": run.method,
        "said": [(what, sentence) for what, sentence in said if sentence is not None],
        "matrix": _matrix(run),
        "curves": _figure(curves, f"{key}-curves", "Scores", label),
        "fronts": _fronts(run, key),
        "merge_figures": _merge_figures(run, key),
        "merge_table": _last_merges(run),
        "has_merges": bool(run.merges),
        "settings": None if run.settings is None else _yaml(run.settings),
        "environment": run.environment,
    }


def _matrix(run: Run) -> Table:
    record, digits = run.record, score_decimals(run.record)
    names = [*record.task_names, *record.probe_names]
    rows, offset = [], 0 if record.before is None else 1
    for number, (label, scores) in enumerate(record.rows("before training").items()):
        row = number - offset
        own = record.trained[row] if row >= 0 else None
        padded = [*scores, *[math.nan] * (len(names) - len(scores))]
        cells = [Cell(shown(v, digits), column == own) for column, v in enumerate(padded)]
        rows.append((label, cells))
    falls = record.lost()
    if record.trained:  # nothing has followed the last one
        falls[record.task_names[record.trained[-1]]] = math.nan
    foot = [Cell(shown(falls.get(name, math.nan), digits)) for name in names]
    better = "higher" if record.higher_is_better else "lower"
    return Table(
        f"{record.score_name} on every task after training each; {better} is better",
        ["", *names],
        rows,
        ("lost", foot),
        "Bold: right after the task's own training. Lost: by how much the last score is worse than "
        "the best since that"
        + (", and of held-out sets than before training" if record.probe_names else "")
        + ". –: not measured, or nothing followed.",
    )


def _fronts(run: Run, key: str) -> list[dict[str, Any]]:
    found = []
    for number, (name, merge) in enumerate(run.last_merges.items()):
        if not merge.get("front"):
            continue
        known = any(point.get("divergence") is not None for point in merge["front"])
        label = f"The {len(merge['front'])} merges that were tried at the end of {name}: " + (
            "how far predictions went from the snapshot's over the share of the gain that is left"
            if known
            else "the share of the gain that is left over how many times the old counts"
        )
        label += "; the one that was made is ringed."
        drawn = _figure(
            figures.front(merge, name), f"{key}-front-{number}", f"Merges tried after {name}", label
        )
        found.append({"name": name, "figure": drawn, "table": _front_table(merge, name)})
    return found


def _front_table(merge: Mapping[str, Any], name: str) -> Table:
    from recall_lightning.recall.records import front_rows

    rows = []
    for number, (keep, share, loss, divergence, made) in enumerate(front_rows(merge), start=1):
        cells = [
            "–" if keep is None else f"{keep:.3g}" if keep < 1000 else f"{keep:.0f}",
            "–" if share is None else shown(100 * share, 1),
            *(shown(value, 4) for value in (loss, divergence)),
        ]
        rows.append(("made" if made else f"tried {number}", [Cell(cell, made) for cell in cells]))
    columns = ["merge", "the old counts (times)", "of the gain left (%)", "loss"]
    return Table(f"Merges at the end of {name}", [*columns, "nats from the snapshot"], rows)


def _merge_figures(run: Run, key: str) -> list[dict[str, Any]]:
    kinds = {
        "Coefficients": (
            figures.coefficients(run),
            "Heatmap: the weight that the snapshot got in each merge, block by block.",
        ),
        "Drift": (
            figures.drift(run),
            "Heatmap: how far each block's weights had gone from the snapshot before each merge, "
            "relative to the snapshot's norm.",
        ),
        "Estimated forgetting, to rank merges by": (
            figures.estimated_forgetting(run),
            "Line chart: how far predictions on each task's own inputs have gone from the "
            "snapshot's, before and after the merge at its end, in nats a prediction. It ranks "
            "merges and is no measurement of what was forgotten.",
        ),
    }
    return [
        {
            "name": name,
            "figure": _figure(drawn, f"{key}-{name.split()[0].lower()}", name, label),
        }
        for name, (drawn, label) in kinds.items()
        if drawn is not None
    ]


def _last_merges(run: Run) -> Table | None:
    """Coefficient and drift of each block at each task's last merge."""
    last = {name: merge for name, merge in run.last_merges.items() if merge.get("coefficient")}
    if not last:
        return None
    blocks = dict.fromkeys(block for merge in last.values() for block in merge["coefficient"])
    columns = [f"{name}: {what}" for name in last for what in ("coefficient", "drift")]
    rows = [
        (
            block,
            [
                Cell(shown(merge.get(what, {}).get(block, math.nan), 3))
                for merge in last.values()
                for what in ("coefficient", "drift")
            ],
        )
        for block in blocks
    ]
    columns = ["block", *columns]
    return Table("The last merge of each task, by block", columns, rows, note=refitted(last))


def _summary(runs: Sequence[Run]) -> Table:
    """All runs side by side."""
    values = [run.record.summary() for run in runs]
    metrics = {run.record.score_name for run in runs}
    digits = decimals_for(each.get(name, math.nan) for each in values for name in METRICS)
    rows = []
    for run, each in zip(runs, values, strict=True):
        scores = [shown(each.get(name), digits) for name in METRICS]
        seconds = duration(run.record.seconds)
        merging = duration(merge_seconds(run.merges)) if run.merges else "–"
        better = "higher" if run.record.higher_is_better else "lower"
        cells = [run.method, run.record.score_name, better, *scores, seconds, merging]
        rows.append((run.name, [Cell(cell) for cell in cells]))
    note = f"{METRICS_NOTE} Merging: what of the time merges took."
    if len(metrics) > 1:
        note += " These runs were measured in different metrics, which cannot be compared."
    columns = ["run", "method", "metric", "better", *METRICS, "time", "merging"]
    return Table(
        "What was left at the end, and what it took", columns, rows, note=note, kind="text"
    )


def _figure(drawn: Figure | None, key: str, name: str, label: str) -> dict[str, Any] | None:
    if drawn is None:
        return None
    width = round(drawn.get_size_inches()[0] * 96)  # in CSS pixels
    least = min(width, max(512, round(0.7 * width)))  # below that its text cannot be read
    return {
        "svg": figures.inline_svg(drawn, key, label),
        "name": name,
        "label": label,
        "width": width,
        "least": least,
    }


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(_given(settings), sort_keys=False, allow_unicode=True)


def _given(settings: Any) -> Any:
    """Leave out what was left open: most of what a Trainer can be told."""
    if isinstance(settings, Mapping):
        return {name: _given(value) for name, value in settings.items() if value is not None}
    return settings
